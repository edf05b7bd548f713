//! The real bodies of the transport: the suite of the seam, refusals, renewal, peers that hang.

mod bodies;
mod hung;
mod joining;
mod refusal;
mod renewal;
mod rig;
