//! Who may ask: the `Host` header must name this relay, and the queue API needs the token.

use std::net::IpAddr;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HOST};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpRequest};

use super::{AdminContext, Failure};

/// Refuses requests for another host: a web page whose name was pointed at this address (DNS rebinding) has its own
/// name in `Host`. A target in absolute form names a host too (RFC 9112 section 3.2.2); both must be ours.
pub(super) async fn check_host(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let hosts = &context(request.request()).hosts;
    let by_header = header(request.request(), HOST.as_str()).is_some_and(|host| is_own_host(host, hosts));
    let by_target = request.uri().authority().is_none_or(|host| is_own_host(host.as_str(), hosts));
    if by_header && by_target {
        return next.call(request).await;
    }
    Err(Failure::new(
        StatusCode::MISDIRECTED_REQUEST,
        "this name is not served here; ask by address or as localhost, or add the name to http.hosts",
    )
    .into())
}

/// Refuses requests without the token.
pub(super) async fn check_token(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let good = header(request.request(), AUTHORIZATION.as_str())
        .and_then(|value| value.strip_prefix("Bearer "))
        .is_some_and(|token| is_same(token.trim(), &context(request.request()).token));
    if good {
        return next.call(request).await;
    }
    Err(Failure::new(
        StatusCode::UNAUTHORIZED,
        "give the token of the file api-token in the spool folder as \"Authorization: Bearer <token>\"",
    )
    .into())
}

fn context(request: &HttpRequest) -> &AdminContext {
    request.app_data::<Data<AdminContext>>().expect("serve() gives every app its context")
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}

/// Whether a `Host` header names this relay: `localhost`, any address, or one of `hosts`.
fn is_own_host(header: &str, hosts: &[String]) -> bool {
    let name = without_port(header);
    name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        || hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

fn without_port(header: &str) -> &str {
    match header.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => header,
    }
}

/// Compares in a time that does not tell how much of it is right.
fn is_same(given: &str, token: &str) -> bool {
    given.len() == token.len()
        && given.bytes().zip(token.bytes()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_and_addresses_are_served() {
        let hosts = ["relay.example.org".to_owned()];
        for (header, expected) in [
            ("localhost", true),
            ("LocalHost:9925", true),
            ("127.0.0.1:9925", true),
            ("192.0.2.7", true),
            ("[::1]:9925", true),
            ("[::1]", true),
            ("relay.example.org:80", true),
            ("Relay.Example.org", true),
            ("evil.example", false),
            ("evil.example:9925", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_own_host(header, &hosts), expected, "{header}");
        }
    }

    #[test]
    fn only_the_whole_token_is_right() {
        assert!(is_same("abc", "abc"));
        for wrong in ["", "ab", "abd", "abcd"] {
            assert!(!is_same(wrong, "abc"), "{wrong}");
        }
    }
}
