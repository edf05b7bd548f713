//! Two volumes of one name on a node: a disk came back that had been given up, and the names of its volumes were given to others meanwhile.
//!
//! Invariant: who asks for a name finds the volume that was found before: the one of which the roll says so keeps it, and the other is there
//! under a name of its own.

use std::collections::HashSet;

use quarry_engine::block::VolumeId;

use super::label::MAX_NAME;
use super::roll::Noted;
use super::volumes::Volumes;

impl Volumes {
    /// Gives other names to volumes whose names are taken, of such names as `may_change` says; how many. `rolled`: the roll as it was before
    /// this start.
    pub async fn part_namesakes(&self, rolled: &[Noted], may_change: impl Fn(&str) -> bool) -> usize {
        let _names = self.names().lock().await;
        let mut taken: HashSet<String> = self.names_away().collect();
        let was = |id: VolumeId, name: &str| {
            rolled.iter().any(|noted| noted.id == id && noted.name.as_deref() == Some(name))
        };
        let mut all = self.list();
        all.sort_by_key(|volume| (!was(volume.id, &volume.label.name), volume.id));
        let mut parted = 0;
        for mut volume in all {
            if taken.insert(volume.label.name.clone()) || !may_change(&volume.label.name) {
                continue;
            }
            let name = other_name(&volume.label.name, volume.id, |name| taken.contains(name));
            tracing::warn!(
                volume = %volume.label.name, now = %name, id = %hex(volume.id), disk = %volume.seat().disk().device(),
                "a volume came back whose name was given to another one meanwhile: it has another name now"
            );
            taken.insert(name.clone());
            volume.label.name = name;
            // Where the disk does not take it, the next start parts them again.
            if let Err(error) = volume.seat().label(Some(&volume.label.encode())).await {
                tracing::warn!(%error, volume = %volume.label.name, "write down a volume's other name");
            }
            self.known(|known| known.insert(volume.id, volume));
            parted += 1;
        }
        parted
    }
}

fn hex(id: VolumeId) -> String {
    format!("{:032x}", u128::from_be_bytes(id.0))
}

/// A name like this one, with as much of the identity as makes it another.
fn other_name(name: &str, id: VolumeId, taken: impl Fn(&str) -> bool) -> String {
    let id = hex(id);
    let with = |digits: usize| {
        let room = MAX_NAME - digits - 1;
        let end = (0..=room.min(name.len())).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
        format!("{}-{}", &name[..end], &id[..digits])
    };
    let short = with(8);
    if taken(&short) { with(id.len()) } else { short }
}

#[cfg(test)]
mod tests {
    use super::super::label::is_name;
    use super::*;

    #[test]
    fn another_name_is_a_name_and_is_free() {
        let id = VolumeId([0xab; 16]);
        assert_eq!(other_name("disk1", id, |_| false), "disk1-abababab");
        assert_eq!(
            other_name("disk1", id, |name| name == "disk1-abababab"),
            format!("disk1-{}", "ab".repeat(16))
        );
        for long in ["x".repeat(MAX_NAME), "ü".repeat(MAX_NAME / 2)] {
            for all in [false, true] {
                let name = other_name(&long, id, |_| all);
                assert!(is_name(&name) && name != long, "{name}");
            }
        }
    }
}
