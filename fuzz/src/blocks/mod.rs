//! Volumes with several members as nodes run them: the real heads, their drivers and the real member service over simulated drives,
//! network, time and clocks, from one seed. The control group's row of the volume is modelled; beside that nothing is.
//!
//! First a safety phase: clients at several nodes write, trim, read and flush, also at heads that are fenced and do not know it, while
//! machines lose their power, drives fail, messages are lost, late or come twice, and heads follow one another. Then a healing phase:
//! everything must be there, and all members alike.
//!
//! Invariant: equal seeds give equal histories, shown by the hash of what happened.

pub(crate) mod clients;
mod compare;
pub(crate) mod control;
mod copies;
pub(crate) mod healing;
mod history;
mod oracle;
pub(crate) mod part;
mod plant;
mod split;
mod trouble;
mod world;

pub use history::{Failure, Summary, history, history_with};
pub use plant::Plant;
