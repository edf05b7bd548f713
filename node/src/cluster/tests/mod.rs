//! The real bodies of the transport: the suite of the seam, refusals, renewal, peers that hang,
//! disks at their ends.

mod bodies;
mod both;
mod disk;
mod hung;
mod joining;
mod refusal;
mod renewal;
mod rig;
