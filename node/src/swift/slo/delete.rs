//! Deleting static large objects with their segments.
//!
//! Invariant: a manifest is deleted after its segments, so that a failure in between can be repeated.

use std::collections::VecDeque;
use std::sync::Arc;

use http::Response;
use quarry_engine::object::ObjectPath;

use super::super::authorize::{Subject, Verb, authorize};
use super::super::body::ResponseBody;
use super::super::bulk::{Tally, answer};
use super::super::error::{Result, SwiftError};
use super::super::listing::Format;
use super::super::object::get::Nature;
use super::super::{Api, Call};
use super::get::load;
use super::manifest::Stored;

/// One step of the work.
enum Step {
    /// Look into a manifest, then delete it when its segments are gone.
    Expand(String),
    /// Delete an object.
    Remove(String),
}

/// Delete a manifest and all its segments.
pub(crate) async fn delete(api: &Arc<Api>, call: &Call, path: &ObjectPath) -> Result<Response<ResponseBody>> {
    let format = Format::of_report(&call.headers)?;
    let mut tally = Tally::default();
    let mut steps = VecDeque::from([Step::Expand(format!("{}/{}", path.container, path.object))]);
    while let Some(step) = steps.pop_front() {
        if steps.len() > api.limits.slo_max_segments * 10 {
            tally.abort(SwiftError::message(400, "Too many buffered slo segments to delete."));
            break;
        }
        match step {
            Step::Remove(name) => tally.remove(api, call, &path.account, &name).await,
            Step::Expand(name) => match expand(api, call, &path.account, &name).await {
                Ok(segments) => {
                    steps.extend(segments);
                    steps.push_back(Step::Remove(name));
                }
                Err(error) => tally.count(&name, &Err(error)),
            },
        }
        if tally.is_hopeless(&api.limits) {
            break;
        }
    }
    Ok(answer(format, &tally))
}

async fn expand(api: &Arc<Api>, call: &Call, account: &Arc<str>, name: &str) -> Result<Vec<Step>> {
    let (container, object) = name.split_once('/').ok_or_else(|| SwiftError::status(404))?;
    let path =
        ObjectPath { account: Arc::clone(account), container: container.into(), object: object.into() };
    authorize(api, call, Subject::object(&path), Verb::Read).await?;
    let reader = api.store.open(&path).await?.ok_or_else(|| SwiftError::status(404))?;
    if reader.info.delete_at.is_some_and(|at| at <= call.now) {
        return Err(SwiftError::status(404));
    }
    if Nature::of(&reader.info) != Nature::Static {
        return Err(SwiftError::message(400, "Not an SLO manifest"));
    }
    let segments = load(api, &reader).await?;
    Ok(segments
        .into_iter()
        .filter_map(|segment| match segment {
            Stored::Data { .. } => None,
            Stored::Object(object) => {
                let name = object.name.trim_start_matches('/').to_owned();
                Some(if object.sub_slo { Step::Expand(name) } else { Step::Remove(name) })
            }
        })
        .collect())
}
