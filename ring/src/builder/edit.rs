//! Edits of a builder: what is wanted changes, the table does not.

use super::{
    Builder, Change, Event, MAX_HISTORY, MAX_LABEL, MAX_MIN_PART_HOURS, Member, Overload, check_replicas,
    is_label,
};
use crate::{Class, Device, InvalidRing, MAX_DEVICES, Replicas};

/// Why an edit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// No device has this id, or none any more.
    #[error("there is no device {0}")]
    NoSuchDevice(u32),
    /// It is to go already.
    #[error("device {0} is removed already")]
    Removed(u32),
    /// [`MAX_DEVICES`] are there.
    #[error("there are {MAX_DEVICES} devices, and no more can be")]
    TooManyDevices,
    /// All ids were given to devices once.
    #[error("no device id is left")]
    NoId,
    /// Too long, or with control characters.
    #[error("a label has at most {MAX_LABEL} bytes and no control characters")]
    Label,
    /// The policy takes another class.
    #[error("the policy takes {wanted} only, not {given}", wanted = .wanted.name(), given = .given.name())]
    Class {
        /// What it takes.
        wanted: Class,
        /// What was given.
        given: Class,
    },
    /// Out of bounds.
    #[error(transparent)]
    Invalid(#[from] InvalidRing),
    /// Too long.
    #[error("{0} hours between moves are more than {MAX_MIN_PART_HOURS}")]
    MinPartHours(u16),
}

impl Builder {
    /// Add a device; its `id` is given by the builder.
    pub fn add(&mut self, device: &Device, label: &str, hour: u32) -> Result<u32, EditError> {
        let id = self.0.next_id;
        if self.0.members.len() >= MAX_DEVICES {
            return Err(EditError::TooManyDevices);
        }
        if let Some(wanted) = self.0.settings.class.filter(|&class| class != device.class) {
            return Err(EditError::Class { wanted, given: device.class });
        }
        if !is_label(label) {
            return Err(EditError::Label);
        }
        self.0.next_id = id.checked_add(1).ok_or(EditError::NoId)?;
        let weight = device.weight;
        let device = Device { id, ..device.clone() };
        self.0.members.push(Member { device, label: label.to_owned(), removed: false });
        self.record(hour, Change::Added { device: id, weight });
        Ok(id)
    }

    /// Take a device away: its replicas move with the next rebalance, all of them.
    pub fn remove(&mut self, id: u32, hour: u32) -> Result<(), EditError> {
        let member = self.member(id)?;
        member.removed = true;
        self.record(hour, Change::Removed { device: id });
        Ok(())
    }

    /// Give a device another weight. 0 empties it, as fast as one replica of a partition may move after the other.
    pub fn set_weight(&mut self, id: u32, weight: u32, hour: u32) -> Result<(), EditError> {
        let device = &mut self.member(id)?.device;
        let from = std::mem::replace(&mut device.weight, weight);
        if from != weight {
            self.record(hour, Change::Weighted { device: id, from, to: weight });
        }
        Ok(())
    }

    /// Another number of replicas.
    pub fn set_replicas(&mut self, replicas: Replicas, hour: u32) -> Result<(), EditError> {
        check_replicas(replicas)?;
        let from = std::mem::replace(&mut self.0.settings.replicas, replicas);
        if from != replicas {
            self.record(hour, Change::Replicated { from, to: replicas });
        }
        Ok(())
    }

    /// Another overload.
    pub fn set_overload(&mut self, overload: Overload, hour: u32) {
        let from = std::mem::replace(&mut self.0.settings.overload, overload);
        if from != overload {
            self.record(hour, Change::Overloaded { from, to: overload });
        }
    }

    /// Another time in which a partition moves no second time.
    pub fn set_min_part_hours(&mut self, hours: u16, hour: u32) -> Result<(), EditError> {
        if hours > MAX_MIN_PART_HOURS {
            return Err(EditError::MinPartHours(hours));
        }
        let from = std::mem::replace(&mut self.0.settings.min_part_hours, hours);
        if from != hours {
            self.record(hour, Change::MinPartHours { from, to: hours });
        }
        Ok(())
    }

    /// Let every partition move with the next rebalance, however short ago it moved.
    pub fn pretend_min_part_hours(&mut self, hour: u32) {
        self.0.last_moved.fill(0);
        self.record(hour, Change::PretendedMinPartHours);
    }

    fn member(&mut self, id: u32) -> Result<&mut Member, EditError> {
        let at = self.0.members.binary_search_by_key(&id, |member| member.device.id);
        let at = at.map_err(|_| EditError::NoSuchDevice(id))?;
        let member = &mut self.0.members[at];
        if member.removed { Err(EditError::Removed(id)) } else { Ok(member) }
    }

    /// Write down a change that the next version takes up.
    pub(super) fn record(&mut self, hour: u32, change: Change) {
        let version = self.0.version + 1;
        self.record_in(version, hour, change);
    }

    pub(super) fn record_in(&mut self, version: u64, hour: u32, change: Change) {
        if self.0.history.len() >= MAX_HISTORY {
            let excess = self.0.history.len() + 1 - MAX_HISTORY;
            self.0.history.drain(..excess);
        }
        self.0.history.push(Event { version, hour, change });
    }
}
