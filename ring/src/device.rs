//! A disk as the ring sees it.

/// A disk in the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Given once and never again to another disk.
    pub id: u32,
    /// Failure domain: a site.
    pub region: u16,
    /// Failure domain within the region: a room, a rack, a power feed.
    pub zone: u16,
    /// Failure domain within the zone: a machine. Equal numbers in different zones are different machines.
    pub node: u32,
    /// Share of the data it should hold, relative to the others (in any unit, GiB say). 0: being emptied.
    pub weight: u32,
    /// What it is made of.
    pub class: Class,
}

/// What a device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Rotating.
    Hdd,
    /// Flash behind SATA or SAS.
    Ssd,
    /// Flash on PCIe.
    Nvme,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hdd, Self::Ssd, Self::Nvme];

    /// `hdd`, `ssd` or `nvme`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hdd => "hdd",
            Self::Ssd => "ssd",
            Self::Nvme => "nvme",
        }
    }

    /// Its number in files.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Hdd => 0,
            Self::Ssd => 1,
            Self::Nvme => 2,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.number() == number)
    }
}
