//! Swift's ring files (`*.ring.gz`, format version 1) and builder files, made builders of Quarry.
//!
//! Invariant: no input panics, and none makes more memory be allocated than a small multiple of what is read.
//! Invariant: partitions, ids and places of replicas stay as they are: a data node finds the same devices.

mod gzip;
mod pickle;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use quarry_ring::{
    Builder, Change, Class, Device, Event, InvalidBuilder, MAX_LABEL, MAX_MIN_PART_HOURS, MAX_PART_POWER,
    Member, Overload, Parts, Replicas, Settings,
};

pub use gzip::GzipError;
pub use pickle::PickleError;
use pickle::{Pickle, Value};

/// No device, in Swift's tables and in ours.
const NONE: u16 = u16::MAX;
/// "Moved 255 hours ago" is as long ago as Swift remembers.
const LONG_AGO: i64 = 255;
/// Weights are numbers with a fraction there, and whole here: the least of these that makes all of them whole.
const WEIGHT_SCALES: [f64; 4] = [1.0, 10.0, 100.0, 1000.0];

/// Why a file cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Neither gzip nor pickle.
    #[error("neither a `.ring.gz` nor a builder file of Swift")]
    Unknown,
    /// A damaged or foreign builder file.
    #[error("builder file: {0}")]
    Pickle(#[from] PickleError),
    /// A damaged or foreign ring file.
    #[error("ring file: {0}")]
    Gzip(#[from] GzipError),
    /// A value is missing or of another kind.
    #[error("`{0}` is missing or not what it should be")]
    Field(&'static str),
    /// A device has a number that does not fit.
    #[error("device {device}: `{field}` is missing or out of range")]
    Device {
        /// Its id there.
        device: usize,
        /// Which number.
        field: &'static str,
    },
    /// A replica on a device that is not there.
    #[error("replica {row} of partition {partition} is on device {device}, which is not there")]
    NoSuchDevice {
        /// Which replica.
        row: usize,
        /// Of which partition.
        partition: usize,
        /// Which device.
        device: u16,
    },
    /// What was read breaks a rule of rings here.
    #[error(transparent)]
    Invalid(#[from] InvalidBuilder),
}

/// Make a builder of a file of Swift. Devices there have no class; all get `class`.
pub fn import(bytes: &[u8], class: Class, hour: u32) -> Result<Builder, ImportError> {
    let found = match bytes {
        [0x1f, 0x8b, ..] => gzip::read(bytes)?,
        [0x80, ..] => from_pickle(&pickle::read(bytes)?)?,
        _ => return Err(ImportError::Unknown),
    };
    found.builder(class, hour)
}

/// A device there.
#[derive(Debug, Clone)]
struct Foreign {
    region: i64,
    zone: i64,
    weight: f64,
    /// Its machine.
    ip: String,
    /// `ip:port/device`.
    label: String,
    removed: bool,
}

/// What both kinds of file say.
#[derive(Debug)]
struct Found {
    part_power: u8,
    /// As set; a file without the setting has what its table has.
    replicas: Option<f64>,
    min_part_hours: i64,
    overload: f64,
    version: u64,
    /// By id.
    devices: Vec<Option<Foreign>>,
    rows: Vec<Vec<u16>>,
    /// Hour of the last move of each partition; 0: long ago.
    last_moved: Vec<u32>,
}

impl Found {
    fn builder(self, class: Class, hour: u32) -> Result<Builder, ImportError> {
        let partitions = 1_usize << self.part_power;
        let built = self.built(partitions);
        let replicas = self.replicas.map_or(built.unwrap_or(Replicas::whole(1)), hundredths);
        let (members, positions) = self.members(class)?;
        let mut rows = self.positions(&positions)?;
        let lengths = built.map(|built| row_lengths(built, partitions)).unwrap_or_default();
        rows.resize(lengths.len(), Vec::new());
        for (row, length) in rows.iter_mut().zip(&lengths) {
            row.resize(*length, NONE);
        }
        let mut last_moved = self.last_moved;
        last_moved.resize(partitions, 0);
        let settings = Settings {
            part_power: self.part_power,
            replicas,
            min_part_hours: u16::try_from(self.min_part_hours)
                .unwrap_or(MAX_MIN_PART_HOURS)
                .min(MAX_MIN_PART_HOURS),
            overload: Overload::from_hundredths(whole(self.overload * 10_000.0)),
            policy: 0,
            class: None,
        };
        let version = if built.is_some() { self.version.max(1) } else { 0 };
        let next_id = u32::try_from(self.devices.len()).map_err(|_| ImportError::Field("devs"))?;
        let mut history = vec![Event { version, hour, change: Change::Imported }];
        let gone = members.iter().filter(|member| member.removed).map(|member| member.device.id);
        history.extend(gone.map(|device| Event {
            version: version + 1,
            hour,
            change: Change::Removed { device },
        }));
        Ok(Builder::from_parts(Parts {
            settings,
            version,
            next_id,
            members,
            built,
            rows,
            last_moved,
            history,
        })?)
    }

    /// Replicas that the table has: those set, if the rows are as long; else as many hundredths as there are entries.
    fn built(&self, partitions: usize) -> Option<Replicas> {
        if self.rows.is_empty() {
            return None;
        }
        let is_as_set = |replicas: &Replicas| {
            let lengths = row_lengths(*replicas, partitions);
            lengths.iter().copied().eq(self.rows.iter().map(Vec::len))
        };
        let counted = || {
            let entries: usize = self.rows.iter().map(Vec::len).sum();
            Replicas::from_hundredths(u32::try_from(entries * 100 / partitions).unwrap_or(u32::MAX))
        };
        Some(self.replicas.map(hundredths).filter(is_as_set).unwrap_or_else(counted))
    }

    /// The devices, and the position of each by its id there.
    fn members(&self, class: Class) -> Result<(Vec<Member>, Vec<u16>), ImportError> {
        let scale = self.weight_scale();
        let mut nodes = BTreeMap::new();
        let mut members: Vec<Member> = Vec::new();
        let mut positions = vec![NONE; self.devices.len()];
        for (id, device) in self.devices.iter().enumerate() {
            let Some(device) = device else { continue };
            let out_of_range = |field| ImportError::Device { device: id, field };
            let region = u16::try_from(device.region).map_err(|_| out_of_range("region"))?;
            let zone = u16::try_from(device.zone).map_err(|_| out_of_range("zone"))?;
            let weight = device.weight * scale;
            if !(0.0..=f64::from(u32::MAX)).contains(&weight) {
                return Err(out_of_range("weight"));
            }
            // Machines are numbered in the order in which they come.
            let next = u32::try_from(nodes.len()).map_err(|_| out_of_range("ip"))?;
            let node = *nodes.entry((region, zone, device.ip.clone())).or_insert(next);
            let id32 = u32::try_from(id).map_err(|_| out_of_range("id"))?;
            // A weight that is not nothing stays something.
            let weight = whole(weight).max(u32::from(device.weight > 0.0));
            positions[id] = u16::try_from(members.len()).map_err(|_| ImportError::Field("devs"))?;
            let device_here = Device { id: id32, region, zone, node, weight, class };
            members.push(Member {
                device: device_here,
                label: label(&device.label),
                removed: device.removed,
            });
        }
        Ok((members, positions))
    }

    /// The table by positions.
    fn positions(&self, positions: &[u16]) -> Result<Vec<Vec<u16>>, ImportError> {
        let position = |row: usize, partition: usize, device: u16| {
            if device == NONE {
                return Ok(NONE);
            }
            let found = positions.get(usize::from(device)).filter(|&&at| at != NONE);
            found.copied().ok_or(ImportError::NoSuchDevice { row, partition, device })
        };
        let row = |(row, devices): (usize, &Vec<u16>)| {
            devices.iter().enumerate().map(|(partition, &device)| position(row, partition, device)).collect()
        };
        self.rows.iter().enumerate().map(row).collect()
    }

    fn weight_scale(&self) -> f64 {
        let weights = || self.devices.iter().flatten().map(|device| device.weight);
        let is_whole = |scale: &&f64| weights().all(|weight| ((weight * **scale).fract()).abs() < 1e-6);
        let fits = |scale: &&f64| weights().all(|weight| weight * **scale <= f64::from(u32::MAX));
        let largest = WEIGHT_SCALES.iter().rev().find(fits);
        WEIGHT_SCALES.iter().filter(fits).find(is_whole).or(largest).copied().unwrap_or(1.0)
    }
}

fn row_lengths(replicas: Replicas, partitions: usize) -> Vec<usize> {
    let (hundredths, rows) = (replicas.hundredths() as usize, replicas.rows());
    let last = partitions * (hundredths % 100) / 100;
    (0..rows.min(1 << 16)).map(|row| if (row + 1) * 100 <= hundredths { partitions } else { last }).collect()
}

fn hundredths(replicas: f64) -> Replicas {
    Replicas::from_hundredths(whole((replicas * 100.0 + 1e-6).floor()))
}

/// The nearest whole number, within bounds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds of u32")]
fn whole(number: f64) -> u32 {
    number.round().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// A text made a label: no control characters, and not too long.
fn label(text: &str) -> String {
    let mut label = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if label.len() + character.len_utf8() > MAX_LABEL {
            break;
        }
        label.push(character);
    }
    label
}

/// A part power that is one, before anything is shifted by it.
fn part_power(number: i64) -> Result<u8, ImportError> {
    let power = u8::try_from(number).ok().filter(|&power| power <= MAX_PART_POWER);
    power.ok_or(ImportError::Field("part_power"))
}

fn from_pickle(file: &Pickle) -> Result<Found, ImportError> {
    let get = |key| file.get(file.top(), key).unwrap_or(Value::None);
    let part_power = part_power(integer(get("part_power")).ok_or(ImportError::Field("part_power"))?)?;
    let replicas = number(get("replicas")).ok_or(ImportError::Field("replicas"))?;
    let removed = file.list(get("_remove_devs")).unwrap_or_default();
    let gone: Vec<_> =
        removed.iter().filter_map(|device| file.get(*device, "id").and_then(integer)).collect();
    let devices = file.list(get("devs")).ok_or(ImportError::Field("devs"))?;
    let devices = devices.iter().enumerate().map(|(id, device)| match device {
        Value::None => Ok(None),
        device => from_dict(file, id, *device, &gone).map(Some),
    });
    let devices = devices.collect::<Result<_, _>>()?;
    let table = file.list(get("_replica2part2dev")).unwrap_or_default().iter().map(|row| {
        let row = file.list(*row).ok_or(ImportError::Field("_replica2part2dev"))?;
        let id = |value: &Value| integer(*value).and_then(|id| u16::try_from(id).ok());
        row.iter().map(|value| id(value).ok_or(ImportError::Field("_replica2part2dev"))).collect()
    });
    let rows: Vec<Vec<u16>> = table.collect::<Result<_, _>>()?;
    let integers = |list: &[Value], field| {
        list.iter()
            .map(|value| integer(*value).ok_or(ImportError::Field(field)))
            .collect::<Result<Vec<_>, _>>()
    };
    let ago = integers(file.list(get("_last_part_moves")).unwrap_or_default(), "_last_part_moves")?;
    let epoch = integer(get("_last_part_moves_epoch")).unwrap_or(0) / 3600;
    let moved = |ago: &i64| match *ago {
        ago if ago >= LONG_AGO || epoch <= 0 => 0,
        ago => u32::try_from(epoch - ago.max(0)).unwrap_or(0),
    };
    Ok(Found {
        part_power,
        replicas: Some(replicas),
        min_part_hours: integer(get("min_part_hours")).unwrap_or(1),
        overload: number(get("overload")).unwrap_or(0.0),
        version: integer(get("version")).and_then(|version| u64::try_from(version).ok()).unwrap_or(1),
        devices,
        rows,
        last_moved: ago.iter().map(moved).collect(),
    })
}

fn from_dict(file: &Pickle, id: usize, device: Value, gone: &[i64]) -> Result<Foreign, ImportError> {
    let get = |key| file.get(device, key).unwrap_or(Value::None);
    let missing = |field| ImportError::Device { device: id, field };
    let text = |key| file.text(get(key)).unwrap_or_default();
    let port = integer(get("port")).unwrap_or(0);
    Ok(Foreign {
        // Very old files know no regions.
        region: integer(get("region")).unwrap_or(1),
        zone: integer(get("zone")).ok_or(missing("zone"))?,
        weight: number(get("weight")).ok_or(missing("weight"))?,
        ip: text("ip").to_owned(),
        label: format!("{}:{port}/{}", text("ip"), text("device")),
        removed: gone.iter().any(|gone| usize::try_from(*gone) == Ok(id)),
    })
}

fn integer(value: Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(number),
        Value::Bool(truth) => Some(i64::from(truth)),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "weights and replicas are far below 2^53")]
fn number(value: Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(number).filter(|number| number.is_finite()),
        other => integer(other).map(|number| number as f64),
    }
}
