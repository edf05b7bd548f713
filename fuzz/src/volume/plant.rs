//! Bugs planted on purpose: a harness that cannot fail shows nothing.

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Plant {
    /// None: the real thing.
    #[default]
    Nothing,
    /// What a member promises, and that it has begun, is answered before it is durable.
    EarlyPromise,
    /// A member whose flush failed says that it flushed.
    FailedFlush,
    /// Members and head serve reads whoever has the volume.
    FencedReads,
    /// A member that went another way keeps what it has when it is filled.
    VoidKept,
    /// A member is whole although a row was not sent.
    RowForgotten,
    /// A read is given away before what was read is durable.
    ReadTooEarly,
}
