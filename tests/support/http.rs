//! The smallest HTTP client that can ask the relay, and the reading of metrics.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Sends one request (`method path`) with an optional bearer token.
///
/// # Errors
/// Those of the socket; `InvalidData` for what is not HTTP.
pub fn request(at: SocketAddr, method: &str, path: &str, token: Option<&str>) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    // 1.0, so that the answer ends where the connection ends and is never chunked.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {at}\r\n{token}Content-Length: 0\r\n\r\n")?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {text}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(wrong)?;
    Ok(Answer { status, body: body.to_owned() })
}

/// GET without a token.
///
/// # Errors
/// As [`request`].
pub fn get(at: SocketAddr, path: &str) -> io::Result<Answer> {
    request(at, "GET", path, None)
}

/// The sum of all samples of the metric whose labels contain each of `labels` (`kind="x"`), or `None` without any.
pub fn metric(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None => ("", rest.strip_prefix(' ')?),
        };
        labels.iter().all(|label| found.contains(label)).then(|| value.trim().parse::<f64>().ok())?
    });
    samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}
