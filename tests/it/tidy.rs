//! The laws of the folders, kept by reading the source: each failure names the place, the rule and the way out.
//!
//! Comments, strings and characters are blanked first, so that only code is judged. Unit tests inside `src/` are bound by
//! the laws of their folder too, but may ask the time and be long.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Files that may break a rule: file, rule, reason. Keep it short; an entry that is not needed fails.
const EXCEPTIONS: &[(&str, &str, &str)] = &[(
    "src/spool/sled/open.rs",
    "sleep",
    "opening waits for sled's threads to let go of the file; no arbiter runs yet, and a file lock can't be waited for with a limit",
)];

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 60;

/// What the code of a folder (or file) may name of this crate and of others.
struct Law {
    place: &'static str,
    /// Modules of this crate that it may use.
    modules: &'static [&'static str],
    /// Paths that it must not name.
    never: &'static [&'static str],
    way_out: &'static str,
}

const EFFECTS: &[&str] =
    &["actix", "actix_rt", "actix_web", "tokio", "socket2", "sled", "std::fs", "std::thread"];

const LAWS: &[Law] = &[
    Law {
        place: "src/smtp/",
        modules: &["smtp"],
        never: EFFECTS,
        way_out: "smtp/ is bytes in, bytes and events out: hand the value in as an argument, or move the effect to actors/",
    },
    Law {
        place: "src/mail/",
        modules: &["mail", "smtp"],
        never: EFFECTS,
        way_out: "mail/ is nouns and pure decisions: return what is to be done, and let actors/ do it",
    },
    Law {
        place: "src/schedule/",
        modules: &["schedule", "mail", "smtp", "config"],
        never: &["actix", "actix_rt", "tokio::net", "sled", "std::fs", "std::net", "std::thread"],
        way_out: "schedule/ knows ids and times only: the Queue reads the spool and asks the clock for it",
    },
    Law {
        place: "src/spool/",
        modules: &["spool", "migrations", "mail", "smtp", "config", "clock", "metrics"],
        never: &["actix", "actix_rt", "actix_web", "tokio::net"],
        way_out: "spool/ names no actor, no socket, no schedule: give it a callback or a channel",
    },
    Law {
        place: "src/config/",
        modules: &["config", "route", "smtp"],
        never: &["actix", "tokio", "sled"],
        way_out: "config/ only describes: act on it elsewhere",
    },
    Law {
        place: "src/route/",
        modules: &["route", "mail", "smtp", "config", "clock", "metrics", "schedule"],
        never: &["actix", "actix_rt", "sled"],
        way_out: "route/ tells where mail goes; who sends it there is in actors/",
    },
];

/// Crates that only some places may name.
const HOMES: &[(&str, &[&str], &str)] = &[
    (
        "actix",
        &["src/actors/", "src/admin", "src/embed", "src/cli", "src/main.rs"],
        "only actors talk actix: take a callback, a channel or a Recipient from actors/mod.rs",
    ),
    (
        "actix_rt",
        &["src/actors/", "src/admin", "src/embed", "src/cli", "src/main.rs"],
        "start tasks from the actor that owns them",
    ),
    ("actix_web", &["src/admin", "src/embed"], "HTTP is in admin only; embed/ holds its handle"),
    ("sled", &["src/spool/", "migrations/", "src/migrations/"], "go through the Spool trait"),
    (
        "hickory_resolver",
        &["src/route/resolver.rs", "src/route/resolver/", "src/sink/", "src/cli/sink/"],
        "DNS answers become our types in route/resolver.rs",
    ),
];

/// Words that no code has; where they are at home, and the way out.
const WORDS: &[(&str, &str, &[&str], &str)] = &[
    ("clock", "SystemTime::now", &["src/clock.rs"], "ask the Clock that was handed in"),
    ("clock", "Instant::now", &["src/clock.rs"], "ask the Clock that was handed in"),
    ("unsafe", "unsafe", &["src/spool/sync.rs"], "the one permitted unsafe is the sync of spool/sync.rs"),
    ("unfinished", "todo!", &[], "write it, or leave the feature out and say so in README.md"),
    ("unfinished", "unimplemented!", &[], "write it, or leave the feature out and say so in README.md"),
    ("unfinished", "dbg!", &[], "use tracing"),
    (
        "sleep",
        "thread::sleep",
        &[],
        "nothing on an arbiter blocks: use a timer, or a channel with a time-out",
    ),
];

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    rule: &'static str,
    what: String,
    way_out: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}\n    way out: {}", self.file, self.line, self.rule, self.what, self.way_out)
    }
}

#[test]
fn the_source_keeps_its_laws() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = sources(root);
    assert!(files.len() > 10, "the source was not found under {}", root.display());
    let findings: Vec<Finding> = files.iter().flat_map(|(name, text)| inspect(name, text)).collect();
    let excepted = |finding: &&Finding| {
        EXCEPTIONS.iter().any(|(file, rule, _)| *file == finding.file && *rule == finding.rule)
    };
    let broken: Vec<String> =
        findings.iter().filter(|finding| !excepted(finding)).map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{} rules are broken:\n{}", broken.len(), broken.join("\n"));
    for (file, rule, reason) in EXCEPTIONS {
        let needed = findings.iter().any(|finding| finding.file == *file && finding.rule == *rule);
        assert!(needed, "{file} keeps the rule \"{rule}\" now: take its exception ({reason}) out of tidy.rs");
    }
}

#[test]
fn each_folder_with_a_law_states_it_on_top() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["smtp", "mail", "schedule", "spool"] {
        let text = fs::read_to_string(root.join("src").join(folder).join("mod.rs")).unwrap();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(
            head.contains("LAW"),
            "src/{folder}/mod.rs: write the folder's law into its module doc, after \"LAW:\""
        );
    }
}

#[test]
fn a_broken_law_is_caught() {
    let long = format!("//! Doc.\nfn long() {{\n{}}}\n", "    work();\n".repeat(FUNCTION_LINES));
    let big = format!("//! Doc.\n{}", "const A: u8 = 1;\n".repeat(FILE_LINES));
    let cases: &[(&str, &str, &str, usize)] = &[
        ("src/smtp/x.rs", "//! Doc.\nuse crate::spool::Spool;\n", "folder law", 2),
        ("src/smtp/x.rs", "//! Doc.\nuse crate::{smtp::reply, mail::id::QueueId};\n", "folder law", 2),
        ("src/smtp/x.rs", "//! Doc.\nuse tokio::net::TcpStream;\n", "folder law", 2),
        ("src/mail/x.rs", "//! Doc.\n\nuse std::{fmt, fs};\n", "folder law", 3),
        ("src/mail/x.rs", "//! Doc.\nuse super::super::super::actors;\n", "folder law", 2),
        ("src/schedule/x.rs", "//! Doc.\nuse crate::clock::Clock;\n", "folder law", 2),
        ("src/spool/x.rs", "//! Doc.\nuse crate::schedule::Due;\n", "folder law", 2),
        ("src/tls.rs", "//! Doc.\nuse actix::Actor;\n", "home of a crate", 2),
        ("src/admin.rs", "//! Doc.\nfn f() { sled::open(\"x\"); }\n", "home of a crate", 2),
        ("src/route/mx.rs", "//! Doc.\nuse hickory_resolver::TokioResolver;\n", "home of a crate", 2),
        ("src/tls.rs", "//! Doc.\nfn f() {\n    Instant::now();\n}\n", "clock", 3),
        ("src/tls.rs", "//! Doc.\nfn f() {\n    unsafe { x() }\n}\n", "unsafe", 3),
        ("src/tls.rs", "//! Doc.\nfn f() { todo!() }\n", "unfinished", 2),
        ("src/tls.rs", "//! Doc.\nfn f() { std::thread::sleep(d) }\n", "sleep", 2),
        ("src/tls.rs", "use std::fmt;\n", "module doc", 1),
        ("src/tls.rs", &long, "function length", 2),
        ("src/tls.rs", &big, "file length", 1),
    ];
    for (file, text, rule, line) in cases {
        let findings = inspect(file, text);
        let found = findings.iter().any(|finding| finding.rule == *rule && finding.line == *line);
        assert!(found, "{file}: {rule} at line {line} was not caught in\n{text}\nbut {findings:?}");
    }
}

#[test]
fn code_that_keeps_the_laws_passes() {
    let text = r##"//! Says unsafe and todo!() in its doc.
use crate::smtp::{address::Domain, reply};
use std::net::IpAddr;
/* a block: crate::spool /* nested */ sled:: */
// use tokio::net;
const TEXT: &str = "crate::actors // \" Instant::now";
const RAW: &str = r#"unsafe { " } "#;
const BRACE: char = '{';
fn lifetime<'a>(text: &'a str) -> &'a str { text }
#[allow(unsafe_code)]
fn f() {}
#[cfg(test)]
mod tests {
    fn now() { Instant::now(); }
}
"##;
    assert_eq!(inspect("src/smtp/x.rs", text), []);
    assert_eq!(inspect("src/actors/x.rs", "//! Doc.\nuse crate::spool::sled::SledSpool;\n"), []);
}

/// Every Rust file of the program: name relative to the root, and text.
fn sources(root: &Path) -> Vec<(String, String)> {
    let mut folders = vec![root.join("src"), root.join("migrations")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((relative(root, &path), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap().to_string_lossy().into_owned()
}

/// Every rule over one file.
fn inspect(file: &str, text: &str) -> Vec<Finding> {
    let code = blanked(text);
    let tests = test_regions(file, &code);
    let mut findings = Vec::new();
    let mut report = |at: usize, rule: &'static str, what: String, way_out: &str| {
        let line = 1 + code[..at].matches('\n').count();
        findings.push(Finding { file: file.to_owned(), line, rule, what, way_out: way_out.to_owned() });
    };
    let in_tests = |at: usize| tests.iter().any(|region| region.contains(&at));
    check_shape(text, &mut report);
    for (at, path) in paths(&code) {
        check_path(file, &path, at, &mut report);
    }
    for (rule, word, homes, way_out) in WORDS {
        for at in words(&code, word) {
            let excused = homes.contains(&file) || (*rule == "clock" && in_tests(at));
            if !excused {
                report(at, rule, format!("`{word}`"), way_out);
            }
        }
    }
    for (at, lines) in functions(&code) {
        if lines > FUNCTION_LINES && !in_tests(at) {
            let what = format!("a function of {lines} lines, {FUNCTION_LINES} are allowed");
            report(
                at,
                "function length",
                what,
                "keep the decision here and move the steps to functions of their own",
            );
        }
    }
    findings
}

fn check_shape(text: &str, report: &mut impl FnMut(usize, &'static str, String, &str)) {
    if !text.trim_start().starts_with("//!") {
        report(0, "module doc", "the file says not what it is".to_owned(), "begin it with a `//!` line");
    }
    let lines = text.lines().count();
    if lines > FILE_LINES {
        let what = format!("{lines} lines, {FILE_LINES} are allowed");
        report(0, "file length", what, "make it a folder with a file for each of its matters");
    }
}

fn check_path(file: &str, path: &str, at: usize, report: &mut impl FnMut(usize, &'static str, String, &str)) {
    for law in LAWS.iter().filter(|law| file.starts_with(law.place)) {
        let module = path.strip_prefix("crate::").map(|rest| rest.split("::").next().unwrap_or(rest));
        let foreign = module.is_some_and(|module| !law.modules.contains(&module));
        let escaping = path.starts_with("super::super::super::");
        if foreign || escaping || law.never.iter().any(|never| is_under(path, never)) {
            report(at, "folder law", format!("`{path}` in {}", law.place), law.way_out);
        }
    }
    for (name, homes, way_out) in HOMES {
        if is_under(path, name) && !homes.iter().any(|home| file.starts_with(home)) {
            report(at, "home of a crate", format!("`{path}`"), way_out);
        }
    }
}

/// Whether a path is this one or begins with it.
fn is_under(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Every `a::b` path in the code with its place, the members of `a::{b, c::d}` each as a path.
fn paths(code: &str) -> Vec<(usize, String)> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(step) = code[at..].find("::") {
        let middle = at + step;
        let mut start = middle;
        while start > 0 && (is_word(bytes[start - 1]) || bytes[start - 1] == b':') {
            start -= 1;
        }
        at = middle + 2;
        if start == middle || bytes[start] == b':' {
            continue;
        }
        while at < bytes.len() && (is_word(bytes[at]) || code[at..].starts_with("::")) {
            at += 1;
        }
        let head = &code[start..at];
        match bytes.get(at) {
            Some(b'{') if head.ends_with("::") => {
                at = at + 1 + group(&code[at + 1..], head, start, &mut found);
            }
            _ => found.push((start, head.trim_end_matches(':').to_owned())),
        }
    }
    // `use sled;` has no colons.
    let alone = code.match_indices("use ").filter_map(|(at, _)| {
        let name: String = code[at + 4..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        code[at + 4 + name.len()..].starts_with(';').then_some((at, name))
    });
    found.extend(alone);
    found
}

/// Reads the members of a `{…}` after `head`; the length up to its end.
fn group(inside: &str, head: &str, start: usize, found: &mut Vec<(usize, String)>) -> usize {
    let mut member = String::new();
    let mut at = 0;
    while let Some(byte) = inside.as_bytes().get(at) {
        at += 1;
        match byte {
            b'{' => {
                at += group(&inside[at..], &format!("{head}{}", member.trim()), start, found);
                member.clear();
            }
            b',' | b'}' => {
                let name = member.split_whitespace().next().unwrap_or("");
                if !name.is_empty() {
                    found.push((start, format!("{head}{name}")));
                }
                member.clear();
                if *byte == b'}' {
                    break;
                }
            }
            other => member.push(char::from(*other)),
        }
    }
    at
}

/// Where a word stands by itself.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).is_some_and(|before| is_word(code.as_bytes()[before]));
        let after = code.as_bytes().get(at + word.len()).is_some_and(|after| is_word(*after));
        !before && !after
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Each function with a body: where it begins and how many lines it has.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let with_body = words(code, "fn").filter_map(|at| {
        let rest = &code[at..];
        let open = rest.find(['{', ';'])?;
        (rest.as_bytes()[open] == b'{').then(|| (at, rest[..block_end(rest, open)].lines().count()))
    });
    with_body.collect()
}

/// The unit tests of a file: `#[cfg(test)]` blocks, or all of `tests.rs`.
fn test_regions(file: &str, code: &str) -> Vec<Range<usize>> {
    if file.ends_with("/tests.rs") {
        return std::iter::once(0..code.len()).collect();
    }
    let blocks = code.match_indices("#[cfg(test)]").filter_map(|(at, _)| {
        let open = at + code[at..].find(['{', ';'])?;
        (code.as_bytes()[open] == b'{').then(|| at..block_end(code, open))
    });
    blocks.collect()
}

/// The end of the block that opens at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    code.len()
}

/// The text with comments, strings and characters blanked, byte for byte, line for line.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = match rest {
            [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => block_comment(rest),
            [b'r', b'"' | b'#', ..] if at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == b'b' => {
                raw_string(rest)
            }
            [b'"', ..] => quoted(rest, b'"'),
            // A character, not a lifetime.
            [b'\'', b'\\', ..] => quoted(rest, b'\''),
            [b'\'', first, ..] => {
                let width = text[at + 1..].chars().next().map_or(1, char::len_utf8);
                if rest.get(1 + width) == Some(&b'\'') && *first != b'\'' { 2 + width } else { 0 }
            }
            _ => 0,
        };
        for byte in code[at..at + length].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        at += length.max(1);
    }
    String::from_utf8_lossy(
        &code.iter().map(|byte| if byte.is_ascii() { *byte } else { b' ' }).collect::<Vec<_>>(),
    )
    .into_owned()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`; 0 when it is a raw identifier.
fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = 2 + hashes;
    rest[body..]
        .windows(end.len())
        .position(|window| window == end)
        .map_or(rest.len(), |at| body + at + end.len())
}

/// From a quote to its twin, escapes skipped.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}
