//! What people write on the command line: devices, weights, replicas, percentages.

use std::str::FromStr;

use quarry_ring::{Class, Device, MAX_REPLICAS, Overload, Replicas};

/// REGION.ZONE.NODE:WEIGHT[:CLASS[:LABEL]]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct DeviceSpec {
    /// Its id is given later.
    pub(super) device: Device,
    pub(super) label: String,
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "allowed: REGION.ZONE.NODE:WEIGHT[:CLASS[:LABEL]], such as 1.2.7:4000:hdd:store7/sdb, not {text}"
            )
        };
        let mut parts = text.splitn(4, ':');
        let place = parts.next().unwrap_or_default();
        let weight = parts.next().and_then(|weight| weight.parse().ok()).ok_or_else(form)?;
        let class = parts.next().map_or(Ok(Class::Hdd), class)?;
        let label = parts.next().unwrap_or_default().to_owned();
        let mut place = place.split('.');
        let mut next = || place.next().ok_or_else(form);
        let (region, zone, node) = (next()?, next()?, next()?);
        let small = |text: &str| text.parse::<u16>().map_err(|_| form());
        let (region, zone) = (small(region)?, small(zone)?);
        let node = node.parse().map_err(|_| form())?;
        if place.next().is_some() {
            return Err(form());
        }
        Ok(Self { device: Device { id: 0, region, zone, node, weight, class }, label })
    }
}

/// ID=WEIGHT
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) struct WeightSpec {
    pub(super) id: u32,
    pub(super) weight: u32,
}

impl FromStr for WeightSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(id, weight)| {
            let (id, weight) = (id.parse().ok()?, weight.parse().ok()?);
            Some(Self { id, weight })
        });
        parsed.ok_or_else(|| "allowed: ID=WEIGHT, such as 17=4000".to_owned())
    }
}

/// `hdd`, `ssd` or `nvme`.
pub(super) fn class(text: &str) -> Result<Class, String> {
    let found = Class::ALL.into_iter().find(|class| class.name() == text);
    found.ok_or_else(|| "allowed classes: hdd, ssd, nvme".to_owned())
}

/// `3`, `3.25`.
pub(super) fn replicas(text: &str) -> Result<Replicas, String> {
    let found = hundredths(text).map(Replicas::from_hundredths);
    let found = found.filter(|replicas| replicas.hundredths() > 0 && *replicas <= MAX_REPLICAS);
    found.ok_or_else(|| format!("allowed: 0.01 to {}, in hundredths", MAX_REPLICAS.hundredths() / 100))
}

/// `10%`, `2.5%`, `unlimited`.
pub(super) fn overload(text: &str) -> Result<Overload, String> {
    if text == "unlimited" {
        return Ok(Overload::UNLIMITED);
    }
    let found = hundredths(text.trim_end_matches('%')).map(Overload::from_hundredths);
    let found = found.filter(|&overload| overload != Overload::UNLIMITED);
    found.ok_or_else(|| "allowed: a percentage such as 10% or 2.5%, or unlimited".to_owned())
}

/// A number with at most two decimals, in hundredths.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 2 {
        return None;
    }
    let tenth = if decimals.len() == 1 { 10 } else { 1 };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(decimals.parse::<u32>().ok()? * tenth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let full: DeviceSpec = "1.2.7:4000:nvme:a:b/sdb".parse().unwrap();
        let device = Device { id: 0, region: 1, zone: 2, node: 7, weight: 4000, class: Class::Nvme };
        assert_eq!(full, DeviceSpec { device: device.clone(), label: "a:b/sdb".to_owned() });
        let short: DeviceSpec = "1.2.7:4000".parse().unwrap();
        assert_eq!(short.device, Device { class: Class::Hdd, ..device });
        for bad in ["", "1.2:3", "1.2.3", "1.2.3.4:5", "1.2.3:x", "99999.1.1:1", "1.1.1:-1", "1.1.1:1:tape"] {
            bad.parse::<DeviceSpec>().unwrap_err();
        }
    }

    #[test]
    fn numbers_are_read() {
        assert_eq!("17=4000".parse(), Ok(WeightSpec { id: 17, weight: 4000 }));
        "17".parse::<WeightSpec>().unwrap_err();
        assert_eq!(replicas("3").map(Replicas::hundredths), Ok(300));
        assert_eq!(replicas("3.5").map(Replicas::hundredths), Ok(350));
        assert_eq!(replicas("0.05").map(Replicas::hundredths), Ok(5));
        for bad in ["0", "33", "3.255", "-1", "", ".", "3.", "99999999999"] {
            replicas(bad).unwrap_err();
        }
        assert_eq!(overload("2.5%"), Ok(Overload::from_hundredths(250)));
        assert_eq!(overload("unlimited"), Ok(Overload::UNLIMITED));
        overload("much").unwrap_err();
    }
}
