//! A request to the volume API, parsed: who asks, in which microversion, for what.
//!
//! Invariant: the microversion is settled before anything else, and one that is not known is refused.

use std::path::PathBuf;

use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::fault::Fault;
use crate::hidden::Hidden;

/// Newest microversion `3.N` that is implemented.
pub(crate) const NEWEST: u16 = 71;

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) user: String,
    /// Empty for a token of no project.
    pub(crate) project: String,
    pub(crate) admin: bool,
    /// Has another role than to read.
    pub(crate) writes: bool,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Decoded names and values, in order.
    pub(crate) query: Vec<(String, String)>,
    /// `N` of microversion `3.N`.
    pub(crate) minor: u16,
    pub(crate) caller: Caller,
    /// URL of the API with `/v3`.
    pub(crate) base: String,
    /// Path behind the host, for links to the next page.
    pub(crate) path: String,
    /// Keys of transfers come in some.
    pub(crate) body: Hidden<Value>,
    /// Of the request.
    pub(crate) id: String,
    /// The caller's token: other services are asked with it.
    pub(crate) token: Hidden,
    /// Where the image service is, if there is one.
    pub(crate) images: Option<String>,
    /// Certificates of who signed that of the image service.
    pub(crate) image_authority: Option<PathBuf>,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Keys of transfers go out in some.
    pub(crate) body: Hidden<Option<Value>>,
}

/// An answer or a refusal.
pub(crate) type Reply = Result<Answer, Fault>;

impl Answer {
    pub(crate) fn ok(body: Value) -> Reply {
        Ok(Self { status: 200, body: Hidden(Some(body)) })
    }

    /// 202 with a body.
    pub(crate) fn accepted(body: Value) -> Reply {
        Ok(Self { status: 202, body: Hidden(Some(body)) })
    }

    /// Any status, no body.
    pub(crate) fn bare(status: u16) -> Reply {
        Ok(Self { status, body: Hidden(None) })
    }
}

impl Ask {
    /// Whether the request is of microversion `3.minor` or newer.
    pub(crate) fn since(&self, minor: u16) -> bool {
        self.minor >= minor
    }

    /// Refuses older microversions, as if the method was not there.
    pub(crate) fn needs(&self, minor: u16) -> Result<(), Fault> {
        if self.since(minor) {
            return Ok(());
        }
        let message = format!("API version '3.{}' is not supported on this method.", self.minor);
        Err(Fault::other(404, message))
    }

    /// Refuses whoever is no admin.
    pub(crate) fn admin(&self, rule: &str) -> Result<(), Fault> {
        if self.caller.admin { Ok(()) } else { Err(Fault::forbidden(rule)) }
    }

    /// Refuses whoever may only read.
    pub(crate) fn writer(&self, rule: &str) -> Result<(), Fault> {
        if self.caller.admin || self.caller.writes { Ok(()) } else { Err(Fault::forbidden(rule)) }
    }

    /// A parameter of the query, the last of its name.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that is a yes or no.
    pub(crate) fn param_flag(&self, name: &str) -> bool {
        self.param(name).is_some_and(|text| truth(text).unwrap_or(false))
    }

    /// The object under `key` in the body.
    pub(crate) fn member(&self, key: &str) -> Result<&Map<String, Value>, Fault> {
        let found = self.body.get(key).and_then(Value::as_object);
        found.ok_or_else(|| Fault::bad(format!("Missing required element '{key}' in request body.")))
    }

    /// Whether `paper`'s project is the caller's, or the caller an admin.
    pub(crate) fn owns(&self, project: &str) -> bool {
        self.caller.admin || (!self.caller.project.is_empty() && self.caller.project == project)
    }

    /// Whether all projects are asked for, by one who may.
    pub(crate) fn everywhere(&self) -> bool {
        self.caller.admin && self.param("all_tenants").is_some_and(|text| truth(text).unwrap_or(true))
    }
}

/// The usual spellings of yes and no.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

/// The names and values of a query.
pub(crate) fn query(text: &str) -> Vec<(String, String)> {
    let plain = |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| (plain(n), plain(v))).collect()
}

/// The microversion that headers ask for: `OpenStack-API-Version: volume 3.N`, also among others. `3.0` without.
pub(crate) fn microversion(headers: &HeaderMap) -> Result<u16, Fault> {
    let lines = headers.get_all("openstack-api-version").iter().filter_map(|line| line.to_str().ok());
    let wanted = lines.flat_map(|line| line.split(',')).find_map(|one| {
        let (service, version) = one.trim().split_once(' ')?;
        (service == "volume").then(|| version.trim().to_owned())
    });
    let Some(wanted) = wanted else { return Ok(0) };
    if wanted == "latest" {
        return Ok(NEWEST);
    }
    let parts = wanted.split_once('.').and_then(|(major, minor)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (digits(major) && digits(minor)).then_some(())?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let Some((major, minor)) = parts else {
        let message =
            format!("API Version String '{wanted}' is of invalid format. Must be of format 'major.minor'.");
        return Err(Fault::bad(message));
    };
    let known = u16::try_from(minor).ok().filter(|minor| major == 3 && *minor <= NEWEST);
    known.ok_or_else(|| {
        let range = format!("Minimum is 3.0 and maximum is 3.{NEWEST}.");
        Fault::other(406, format!("Version {wanted} is not supported by the API. {range}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<u16, u16> {
        let mut headers = HeaderMap::new();
        headers.insert("openstack-api-version", line.parse().unwrap());
        microversion(&headers).map_err(|fault| fault.status)
    }

    #[test]
    fn microversions_are_known_or_refused() {
        assert_eq!(microversion(&HeaderMap::new()), Ok(0));
        assert_eq!(asked("volume 3.27"), Ok(27));
        assert_eq!(asked("compute 2.1, volume 3.0"), Ok(0));
        assert_eq!(asked("compute 2.1"), Ok(0));
        assert_eq!(asked("volume latest"), Ok(NEWEST));
        assert_eq!(asked("volume 3.72"), Err(406));
        assert_eq!(asked("volume 2.0"), Err(406));
        assert_eq!(asked("volume 3.+1"), Err(400));
        assert_eq!(asked("volume three"), Err(400));
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(
            query("a=b+c&d=%2F&e"),
            [("a", "b c"), ("d", "/"), ("e", "")].map(|(n, v)| (n.into(), v.into()))
        );
    }
}
