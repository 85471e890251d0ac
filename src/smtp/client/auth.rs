//! AUTH PLAIN (RFC 4616) and LOGIN, from the client's side.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// User name and password. Debug never shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Login {
    /// The response of PLAIN: no authorization identity, user name, password.
    pub(super) fn plain(&self) -> String {
        STANDARD.encode(format!("\0{}\0{}", self.username, self.password))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_not_shown() {
        let login = Login { username: "tim".to_owned(), password: "tanstaaf".to_owned() };
        assert!(!format!("{login:?}").contains("tanstaaf"));
        assert_eq!(login.plain(), "AHRpbQB0YW5zdGFhZg==");
    }
}
