//! What no log and no error shows: tokens, keys, passwords, and what has some in it.
//!
//! Invariant: neither `Debug` nor a failed parse tells what was in it, so whatever derives `Debug` around it does not either.
//! Invariant: a field named `token`, `secret`, `password`, `auth_key`, `passphrase` or `private_key` is no bare text (the tidy test looks). A
//! `key` may be a name, so nobody looks for that.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// Something to be used and not shown.
#[derive(Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Hidden<T = String>(pub(crate) T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}

impl<T> Deref for Hidden<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Hidden<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> From<T> for Hidden<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Hidden<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What serde says of a value of another type quotes it.
        T::deserialize(deserializer).map(Self).map_err(|_| D::Error::custom("a secret is of another type"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Login {
        #[expect(dead_code, reason = "it is shown, or not")]
        password: Hidden,
    }

    #[test]
    fn what_is_hidden_is_in_no_text() {
        let login: Login = serde_json::from_str(r#"{"password": "hunter2"}"#).unwrap();
        assert_eq!(format!("{login:?}"), "Login { password: hidden }");
        assert_eq!(serde_json::to_string(&Hidden("hunter2")).unwrap(), "\"hunter2\"");
        for wrong in ["4711", "[4711]", "{\"a\": 4711}"] {
            let text = format!("{{\"password\": {wrong}}}");
            let error = serde_json::from_str::<Login>(&text).unwrap_err().to_string();
            assert!(!error.contains("4711"), "{error}");
            let text = format!("password = {}", wrong.replace(": ", " = ").replace("\"a\"", "a"));
            let error = toml::from_str::<Login>(&text).unwrap_err();
            assert!(!error.message().contains("4711"), "{error}");
        }
    }
}
