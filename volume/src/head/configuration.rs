//! Who the members of a volume are.
//!
//! Invariant: `seal + quorum > members`: whoever sealed has met each acknowledgement.

use quarry_engine::disk::format::record::DeviceId;

/// Most members.
pub const MAX_MEMBERS: usize = 5;

/// Members as the control group has committed them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Configuration {
    /// Rises with every change.
    pub version: u32,
    /// Whose acknowledgements count.
    pub members: Vec<DeviceId>,
    /// Those that are brought up to date, and do not count yet.
    pub joining: Vec<DeviceId>,
}

impl Configuration {
    /// The first one. Members are 1 to [`MAX_MEMBERS`], each once.
    #[must_use]
    pub fn new(members: Vec<DeviceId>) -> Self {
        Self { version: 1, members, joining: Vec::new() }
    }

    /// Members that must have a write before it is acknowledged.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Members whose promises let no lower head acknowledge anything.
    #[must_use]
    pub fn seal(&self) -> usize {
        self.members.len() + 1 - self.quorum()
    }

    /// Everybody that a head talks to.
    pub fn all(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.members.iter().chain(&self.joining).copied()
    }

    /// Its acknowledgements count.
    #[must_use]
    pub fn counts(&self, device: DeviceId) -> bool {
        self.members.contains(&device)
    }

    fn next(&self) -> Self {
        Self { version: self.version.saturating_add(1), ..self.clone() }
    }

    /// A member does not count any more; it is brought up to date when it comes back.
    #[must_use]
    pub fn demoting(&self, device: DeviceId) -> Self {
        let mut next = self.next();
        next.members.retain(|member| *member != device);
        if !next.joining.contains(&device) {
            next.joining.push(device);
        }
        next
    }

    /// One that is up to date counts from now on.
    #[must_use]
    pub fn promoting(&self, device: DeviceId) -> Self {
        let mut next = self.next();
        next.joining.retain(|joining| *joining != device);
        if !next.counts(device) {
            next.members.push(device);
        }
        next
    }

    /// A new one comes.
    #[must_use]
    pub fn adding(&self, device: DeviceId) -> Self {
        let mut next = self.next();
        if !next.all().any(|known| known == device) {
            next.joining.push(device);
        }
        next
    }

    /// One is gone for good, or shall hold the volume no more.
    #[must_use]
    pub fn removing(&self, device: DeviceId) -> Self {
        let mut next = self.next();
        next.members.retain(|member| *member != device);
        next.joining.retain(|joining| *joining != device);
        next
    }

    /// An operator has decided that what one member has is the volume. The others are filled from it; until then each may be chosen instead.
    #[must_use]
    pub fn only(&self, device: DeviceId) -> Self {
        let joining = self.all().filter(|other| *other != device).collect();
        Self { members: vec![device], joining, ..self.next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seal_meets_every_acknowledgement() {
        for (members, quorum, seal) in [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 3, 2), (5, 3, 3)] {
            let configuration = Configuration::new((0..members).map(|n| DeviceId([n; 16])).collect());
            assert_eq!((configuration.quorum(), configuration.seal()), (quorum, seal));
            assert!(configuration.quorum() + configuration.seal() > usize::from(members));
        }
    }

    #[test]
    fn each_change_is_a_new_version() {
        let device = |n| DeviceId([n; 16]);
        let three = Configuration::new(vec![device(1), device(2), device(3)]);
        let two = three.demoting(device(2));
        assert_eq!(
            (two.version, &two.members[..], &two.joining[..]),
            (2, &[device(1), device(3)][..], &[device(2)][..])
        );
        let again = two.promoting(device(2));
        assert_eq!((again.version, again.members.len(), again.joining.len()), (3, 3, 0));
        assert_eq!(again.adding(device(4)).joining, [device(4)]);
        assert_eq!(again.removing(device(1)).members, [device(3), device(2)]);
        let one = again.only(device(3));
        assert_eq!((&one.members[..], &one.joining[..]), (&[device(3)][..], &[device(1), device(2)][..]));
        let other = one.only(device(1));
        assert_eq!((&other.members[..], &other.joining[..]), (&[device(1)][..], &[device(3), device(2)][..]));
    }
}
