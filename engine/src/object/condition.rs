//! Whether a change may happen, as pure functions of what stands.

use super::{Condition, EtagMatch};

/// What must be known of the standing version to judge a [`Condition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    Nothing,
    Existence,
    Etag,
}

pub(crate) fn needs(condition: &Condition) -> Needs {
    let of = |side: &Option<EtagMatch>| match side {
        None => Needs::Nothing,
        Some(EtagMatch::Any) => Needs::Existence,
        Some(EtagMatch::OneOf(_)) => Needs::Etag,
    };
    of(&condition.if_match).max(of(&condition.if_none_match))
}

/// Judges a condition; `current` is the standing version's MD5 in hex, `None` when nothing stands. Where only existence is
/// needed, any text will do.
pub(crate) fn holds(condition: &Condition, current: Option<&str>) -> bool {
    let matches = |wanted: &EtagMatch| match (wanted, current) {
        (_, None) => false,
        (EtagMatch::Any, Some(_)) => true,
        (EtagMatch::OneOf(etags), Some(current)) => etags.iter().any(|etag| etag == current),
    };
    condition.if_match.as_ref().is_none_or(matches) && !condition.if_none_match.as_ref().is_some_and(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_the_table() {
        let any = || Some(EtagMatch::Any);
        let one = |etag: &str| Some(EtagMatch::OneOf(vec!["x".to_owned(), etag.to_owned()]));
        // if_match, if_none_match, holds when absent, when the etag is "a", needs
        let table = [
            (None, None, true, true, Needs::Nothing),
            (any(), None, false, true, Needs::Existence),
            (one("a"), None, false, true, Needs::Etag),
            (one("b"), None, false, false, Needs::Etag),
            (None, any(), true, false, Needs::Existence),
            (None, one("a"), true, false, Needs::Etag),
            (None, one("b"), true, true, Needs::Etag),
            (one("a"), one("b"), false, true, Needs::Etag),
            (any(), any(), false, false, Needs::Existence),
        ];
        for (if_match, if_none_match, absent, present, wanted) in table {
            let condition = Condition { if_match, if_none_match };
            assert_eq!(holds(&condition, None), absent, "{condition:?}");
            assert_eq!(holds(&condition, Some("a")), present, "{condition:?}");
            assert_eq!(needs(&condition), wanted, "{condition:?}");
        }
    }
}
