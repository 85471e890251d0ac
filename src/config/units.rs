//! Durations and sizes as people write them: `90s`, `5m`, `4h`, `5d`, `250ms`; `64MiB`, `32KiB`, `1000`.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

/// Reads a duration: a whole number and a unit (`ms`, `s`, `m`, `h`, `d`), or `0`.
///
/// # Errors
/// A sentence that shows how to write one.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("\"{text}\" is not a duration; write a whole number and ms, s, m, h or d, such as \"5m\"");
    let (number, unit) = split(text.trim()).ok_or_else(wrong)?;
    if unit.is_empty() && number == 0 {
        return Ok(Duration::ZERO);
    }
    let (_, scale) = DURATION_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    number.checked_mul(scale).map(Duration::from_millis).ok_or_else(wrong)
}

/// Writes a duration in its largest whole unit.
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, scale) = DURATION_UNITS
        .into_iter()
        .find(|(_, scale)| ms >= *scale && ms.is_multiple_of(*scale))
        .unwrap_or(("s", 1_000));
    format!("{}{unit}", ms / scale)
}

/// Reads a size in bytes: a whole number, alone or with `B`, `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`.
///
/// # Errors
/// A sentence that shows how to write one.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("\"{text}\" is not a size; write a whole number of bytes or one with KiB, MiB or GiB");
    let (number, unit) = split(text.trim()).ok_or_else(wrong)?;
    let scale = match unit {
        "" => 1,
        unit => SIZE_UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1,
    };
    number.checked_mul(scale).ok_or_else(wrong)
}

/// Writes a size in its largest whole binary unit.
pub fn format_size(bytes: u64) -> String {
    let (unit, scale) = SIZE_UNITS[..3]
        .iter()
        .find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale))
        .copied()
        .unwrap_or(("B", 1));
    format!("{}{unit}", bytes / scale)
}

macro_rules! serde_text {
    ($(#[$doc:meta])* $name:ident, $type:ty, $read:expr, $write:expr) => {
        $(#[$doc])*
        pub mod $name {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[allow(unused_imports)]
            use super::*;

            /// Reads the text form.
            ///
            /// # Errors
            /// A sentence that shows how to write one.
            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Form {
                    Number(u64),
                    Text(String),
                    List(Vec<String>),
                }
                let form = match Form::deserialize(deserializer)? {
                    Form::Number(number) => vec![number.to_string()],
                    Form::Text(text) => vec![text],
                    Form::List(list) => list,
                };
                let read: fn(&[String]) -> Result<$type, String> = $read;
                read(&form).map_err(serde::de::Error::custom)
            }

            /// Writes the text form.
            ///
            /// # Errors
            /// Those of the serializer.
            pub fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                ($write)(value).serialize(serializer)
            }
        }
    };
}

fn one(list: &[String]) -> Result<&str, String> {
    match list {
        [text] => Ok(text),
        _ => Err("one value is needed here, not a list".to_owned()),
    }
}

serde_text!(
    /// A duration field.
    duration, Duration,
    |form| parse_duration(one(form)?),
    |value: &Duration| format_duration(*value)
);
serde_text!(
    /// A duration field that may be absent.
    optional_duration, Option<Duration>,
    |form| parse_duration(one(form)?).map(Some),
    |value: &Option<Duration>| value.map(format_duration)
);
serde_text!(
    /// A list of durations; an environment variable gives them with commas.
    durations, Vec<Duration>,
    |form| form.iter().flat_map(|text| text.split(',')).map(parse_duration).collect(),
    |value: &Vec<Duration>| value.iter().copied().map(format_duration).collect::<Vec<_>>()
);
serde_text!(
    /// A size field in bytes.
    size, u64,
    |form| parse_size(one(form)?),
    |value: &u64| format_size(*value)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for text in ["250ms", "90s", "5m", "4h", "5d"] {
            assert_eq!(format_duration(parse_duration(text).expect(text)), text);
        }
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(
            parse_duration("5").is_err()
                && parse_duration("m").is_err()
                && parse_duration("5 weeks").is_err()
        );
        assert!(parse_duration("99999999999999999d").is_err());
    }

    #[test]
    fn sizes_read_as_they_are_written() {
        for text in ["64MiB", "32KiB", "1000B"] {
            assert_eq!(format_size(parse_size(text).expect(text)), text);
        }
        assert_eq!(parse_size("1000"), Ok(1000));
        assert!(parse_size("big").is_err());
    }
}
