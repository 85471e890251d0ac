//! Asks the running relay over its HTTP API. A few lines of HTTP/1.0 on a blocking socket: one request a
//! connection, an answer that ends where the connection does.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::admin::token;
use crate::admin::view::ErrorView;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The relay answers a removal after a commit, which a busy disk can delay.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer, in bytes: a page of 1,000 messages has some 500 KB.
const ANSWER_MAX: u64 = 64 << 20;

/// Asks one relay.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    token: Option<String>,
    patience: Duration,
}

/// Why there is no answer. Its text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no relay is running at {0} (connection refused); start it with `posthaste serve`, or check http.address in the configuration"
    )]
    NotRunning(SocketAddr),
    /// The token file is missing.
    #[error(
        "{0} does not exist; a relay writes it when it starts and not again while it runs: start the relay, or restart it if the file was deleted; or correct spool.path in the configuration"
    )]
    NoToken(PathBuf),
    /// The token file can't be read.
    #[error("{path} can't be read ({source}); run this as the user that runs the relay")]
    Token {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The relay has another token.
    #[error(
        "the relay at {0} does not accept the token of this spool; do spool.path and http.address belong to the same relay?"
    )]
    WrongToken(SocketAddr),
    /// The connection failed, or no answer came in time.
    #[error("the relay at {address} does not answer properly: {source}")]
    Io {
        /// The relay.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// An error that the relay explains.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The relay's words.
        text: String,
    },
}

impl Client {
    /// A client of the relay at `http.address`, without a token: for metrics and health.
    pub fn new(address: SocketAddr) -> Self {
        // A relay that listens everywhere is asked on loopback.
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Self { address: SocketAddr::new(ip, address.port()), token: None, patience: ANSWER_TIMEOUT }
    }

    /// The same, but it waits for an answer no longer than this.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same with the token of the relay's spool.
    ///
    /// # Errors
    /// The token file is missing or unreadable.
    pub fn with_token(self, spool: &Path) -> Result<Self, ClientError> {
        // Absolute: a relative spool.path with another working directory is the most likely mistake.
        let path = std::path::absolute(token::path(spool)).unwrap_or_else(|_| token::path(spool));
        match token::read(spool) {
            Ok(token) => Ok(Self { token: Some(token), ..self }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ClientError::NoToken(path)),
            Err(source) => Err(ClientError::Token { path, source }),
        }
    }

    /// Sends a request and returns the body of a 2xx answer.
    ///
    /// # Errors
    /// No connection, no proper answer in time, or an error status.
    pub fn request(&self, method: &str, path: &str) -> Result<Vec<u8>, ClientError> {
        let (status, body) = self.exchange(method, path).map_err(|source| self.no_answer(source))?;
        match status {
            200..=299 => Ok(body),
            401 => Err(ClientError::WrongToken(self.address)),
            _ => Err(ClientError::Refused { status, text: explanation(status, &body) }),
        }
    }

    /// Sends a request and reads the JSON of a 2xx answer.
    ///
    /// # Errors
    /// As [`Client::request`], or the answer is other JSON.
    pub fn json<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T, ClientError> {
        let body = self.request(method, path)?;
        serde_json::from_slice(&body).map_err(|error| self.no_answer(error.into()))
    }

    fn no_answer(&self, source: io::Error) -> ClientError {
        if source.kind() == io::ErrorKind::ConnectionRefused {
            return ClientError::NotRunning(self.address);
        }
        ClientError::Io { address: self.address, source }
    }

    fn exchange(&self, method: &str, path: &str) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n", self.address);
        if let Some(token) = &self.token {
            request.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        request.push_str("Content-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
        parse(&answer).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "this is no HTTP answer, or not all of it")
        })
    }
}

/// Status and body of a whole answer; `None` when it is none or was cut off.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim().parse::<usize>());
    match length {
        None => Some((status, body.to_vec())),
        Some(length) => (length.ok()? == body.len()).then(|| (status, body.to_vec())),
    }
}

fn explanation(status: u16, body: &[u8]) -> String {
    serde_json::from_slice::<ErrorView>(body)
        .map_or_else(|_| format!("the relay answered with HTTP status {status}"), |view| view.error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_or_none() {
        for (answer, expected) in [
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Some((200, "ok"))),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\nwhy", Some((503, "why"))),
            ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok", None),
            ("HTTP/1.0 200 OK\r\n", None),
            ("220 relay.example ESMTP\r\n\r\n", None),
            ("", None),
        ] {
            let expected = expected.map(|(status, body)| (status, body.as_bytes().to_vec()));
            assert_eq!(parse(answer.as_bytes()), expected, "{answer}");
        }
    }

    #[test]
    fn a_relay_that_listens_everywhere_is_asked_on_loopback() {
        for (address, expected) in [("0.0.0.0:9925", "127.0.0.1:9925"), ("[::]:1", "[::1]:1")] {
            assert_eq!(Client::new(address.parse().unwrap()).address.to_string(), expected);
        }
    }

    #[test]
    fn trouble_says_what_to_do() {
        let spool = tempfile::tempdir().unwrap();
        // A port that was free a moment ago refuses.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(address);
        let error = client.request("GET", "/livez").unwrap_err().to_string();
        assert!(error.contains("posthaste serve"), "{error}");
        let error = client.clone().with_token(spool.path()).unwrap_err().to_string();
        assert!(error.contains("spool.path") && error.contains("restart it"), "{error}");
        let error = client.clone().with_token(Path::new("no-such-spool")).unwrap_err().to_string();
        let absolute = std::env::current_dir().unwrap().join("no-such-spool/api-token");
        assert!(error.starts_with(&format!("{} does not exist", absolute.display())), "{error}");
        std::fs::create_dir(token::path(spool.path())).unwrap();
        let error = client.with_token(spool.path()).unwrap_err().to_string();
        assert!(error.contains("the user that runs the relay"), "{error}");
    }
}
