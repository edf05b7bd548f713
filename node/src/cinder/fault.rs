//! Refusals as Cinder words them: `{"itemNotFound": {"code": 404, "message": …}}`.
//!
//! Invariant: every refusal has that shape, and its key follows from its status.

use serde_json::{Value, json};

use crate::papers::PaperError;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) message: String,
}

/// Said when nothing can be written any more; deleting is possible still.
const FULL: &str = "The disks are full.";

/// The key of each status.
const KEYS: [(u16, &str); 11] = [
    (400, "badRequest"),
    (401, "unauthorized"),
    (403, "forbidden"),
    (404, "itemNotFound"),
    (405, "badMethod"),
    (406, "computeFault"),
    (409, "conflictingRequest"),
    (413, "overLimit"),
    (500, "computeFault"),
    (501, "notImplemented"),
    (503, "serviceUnavailable"),
];

impl Fault {
    fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 400, for a volume whose state does not allow it.
    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(400, format!("Invalid volume: {}", message.into()))
    }

    /// 403, with the name of the rule as Cinder has it.
    pub(crate) fn forbidden(rule: &str) -> Self {
        Self::new(403, format!("Policy doesn't allow {rule} to be performed."))
    }

    /// 404: `what` as `Volume x`.
    pub(crate) fn missing(what: impl std::fmt::Display) -> Self {
        Self::new(404, format!("{what} could not be found."))
    }

    /// 404 for a path that nothing answers.
    pub(crate) fn nowhere() -> Self {
        Self::new(404, "The resource could not be found.")
    }

    /// 406 and others.
    pub(crate) fn other(status: u16, message: impl Into<String>) -> Self {
        Self::new(status, message)
    }

    /// 409.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, message)
    }

    /// 413.
    pub(crate) fn over(message: impl Into<String>) -> Self {
        Self::new(413, message)
    }

    /// Whether it is that the disks are full.
    pub(crate) fn is_full(&self) -> bool {
        self.message == FULL
    }

    /// The body.
    pub(crate) fn body(&self) -> Value {
        let known = KEYS.iter().find(|(status, _)| *status == self.status);
        let key = known.map_or("computeFault", |(_, key)| key);
        json!({ key: { "code": self.status, "message": self.message } })
    }
}

impl From<PaperError> for Fault {
    fn from(error: PaperError) -> Self {
        use quarry_engine::object::Error;
        match &error {
            PaperError::Taken => Self::conflict("It is there already."),
            PaperError::TooLarge | PaperError::Bad(_) => Self::bad(error.to_string()),
            PaperError::Contended => Self::new(409, error.to_string()),
            PaperError::Store(Error::NoSpace) => Self::new(503, FULL),
            PaperError::Store(_) => {
                tracing::warn!(%error, "read or write papers of volumes");
                Self::new(503, "The service is not available now; try again.")
            }
        }
    }
}
