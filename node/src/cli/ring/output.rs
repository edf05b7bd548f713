//! What the commands print.

use std::io::Write;
use std::path::Path;

use quarry_ring::{Builder, Change, Event, Health, Load, Member, Overload, Replicas};
use serde_json::json;

use super::Failure;
use super::store;

/// Names of the tiers.
const TIERS: [&str; 4] = ["region", "zone", "node", "device"];

/// Millionths as a percentage.
pub(super) fn percent(millionths: u64) -> String {
    format!("{}.{:02} %", millionths / 10_000, millionths % 10_000 / 100)
}

/// `-3.25 %`
fn signed_percent(millionths: i64) -> String {
    let sign = if millionths < 0 { "-" } else { "" };
    format!("{sign}{}", percent(millionths.unsigned_abs()))
}

fn hundredths(number: u32) -> String {
    format!("{}.{:02}", number / 100, number % 100)
}

fn overload(overload: Overload) -> String {
    match overload {
        Overload::UNLIMITED => "unlimited".to_owned(),
        overload => format!("{} %", hundredths(overload.hundredths())),
    }
}

/// About three digits: `9.31T`.
pub(super) fn amount(bytes: u64) -> String {
    for (shift, unit) in [(50, 'P'), (40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes >= 1 << shift {
            let hundredths = (u128::from(bytes) * 100) >> shift;
            return format!("{}.{:02}{unit}", hundredths / 100, hundredths % 100);
        }
    }
    bytes.to_string()
}

pub(super) fn show(file: &Path, builder: &Builder, out: &mut impl Write) -> Result<(), Failure> {
    let (settings, health) = (builder.settings(), builder.health());
    writeln!(out, "{}", file.display())?;
    writeln!(out, "  policy          {}", settings.policy)?;
    writeln!(out, "  class           {}", settings.class.map_or("any", quarry_ring::Class::name))?;
    writeln!(out, "  version         {}", builder.version())?;
    writeln!(out, "  partitions      {} (power {})", builder.partitions(), settings.part_power)?;
    writeln!(out, "  replicas        {}", hundredths(settings.replicas.hundredths()))?;
    writeln!(out, "  min part hours  {}", settings.min_part_hours)?;
    writeln!(out, "  overload        {}", overload(settings.overload))?;
    writeln!(out, "  balance         {}", percent(health.balance))?;
    writeln!(out, "  off target      {}", percent(health.off_target))?;
    writeln!(out, "  dispersion      {}", percent(health.crowded))?;
    writeln!(out, "  pending         {} change(s)", builder.pending().count())?;
    if health.unplaced > 0 {
        writeln!(out, "  unplaced        {} replicas have no device yet", health.unplaced)?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{:>6} {:>6} {:>5} {:>8} {:<5} {:>10} {:>10} {:>12} {:>10}  LABEL",
        "ID", "REGION", "ZONE", "NODE", "CLASS", "WEIGHT", "REPLICAS", "TARGET", "BALANCE"
    )?;
    for (Member { device, label, removed }, load) in builder.members().iter().zip(builder.loads()) {
        let removed = if *removed { " (removed)" } else { "" };
        writeln!(
            out,
            "{:>6} {:>6} {:>5} {:>8} {:<5} {:>10} {:>10} {:>12} {:>10}  {label}{removed}",
            device.id,
            device.region,
            device.zone,
            device.node,
            device.class.name(),
            device.weight,
            load.replicas,
            target(&load),
            signed_percent(load.balance()),
        )?;
    }
    Ok(())
}

/// Millionths of a replica, to hundredths.
fn target(load: &Load) -> String {
    format!("{}.{:02}", load.target / 1_000_000, load.target % 1_000_000 / 10_000)
}

pub(super) fn show_json(builder: &Builder, out: &mut impl Write) -> Result<(), Failure> {
    let (settings, health) = (builder.settings(), builder.health());
    let devices = builder.members().iter().zip(builder.loads()).map(|(member, load)| {
        let device = &member.device;
        json!({
            "id": device.id, "region": device.region, "zone": device.zone, "node": device.node,
            "class": device.class.name(), "weight": device.weight, "label": member.label, "removed": member.removed,
            "replicas": load.replicas, "target_millionths": load.target, "balance_ppm": load.balance(),
        })
    });
    let devices: Vec<_> = devices.collect();
    let overload = Some(settings.overload).filter(|&overload| overload != Overload::UNLIMITED);
    let text = json!({
        "policy": settings.policy, "class": settings.class.map(quarry_ring::Class::name), "version": builder.version(),
        "part_power": settings.part_power, "replicas_hundredths": settings.replicas.hundredths(),
        "min_part_hours": settings.min_part_hours, "overload_hundredths": overload.map(Overload::hundredths),
        "balance_ppm": health.balance, "off_target_ppm": health.off_target, "dispersion_ppm": health.crowded,
        "pending": builder.pending().count(), "devices": devices,
    });
    writeln!(out, "{text}")?;
    Ok(())
}

/// Reading verifies checksums, limits, and that no partition has two replicas on one device; the rest is here.
pub(super) fn validate(file: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let failed = |reason: String| Failure::new(format!("validate builder {}", file.display()), reason);
    let builder = store::load(file)?;
    let health = builder.health();
    if builder.version() == 0 {
        return Err(failed("it has no ring yet; run `quarry ring rebalance`".to_owned()));
    }
    if health.unplaced > 0 {
        return Err(failed(format!(
            "{} replicas have no device; run `quarry ring rebalance`",
            health.unplaced
        )));
    }
    let ring_file = store::ring_name(file);
    let ring = store::load_ring(&ring_file)?;
    if Some(&ring) != builder.ring().map_err(|e| failed(e.to_string()))?.as_ref()
        && builder.pending().count() == 0
    {
        let reason = format!("{} is not its ring; `quarry ring rebalance` writes it", ring_file.display());
        return Err(failed(reason));
    }
    if ring.version() != builder.version() {
        let reason =
            format!("{} has version {}, not {}", ring_file.display(), ring.version(), builder.version());
        return Err(failed(reason));
    }
    writeln!(
        out,
        "{}: good; version {}, balance {}, dispersion {}",
        file.display(),
        builder.version(),
        percent(health.balance),
        percent(health.crowded)
    )?;
    Ok(())
}

pub(super) fn dispersion(file: &Path, builder: &Builder, out: &mut impl Write) -> Result<(), Failure> {
    let Health { crowded, crowded_at, .. } = builder.health();
    writeln!(
        out,
        "{}: {} of the replicas could be further from another of their partition",
        file.display(),
        percent(crowded)
    )?;
    for (tier, crowded) in TIERS.iter().zip(crowded_at) {
        writeln!(out, "  in one {tier:<7} {:>10} more than need be", percent(crowded))?;
    }
    if crowded > 0 {
        writeln!(
            out,
            "more overload, weights that differ less, or further rebalances after min-part-hours bring it down"
        )?;
    }
    Ok(())
}

pub(super) fn history(builder: &Builder, last: usize, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "{:>8} {:<17} WHAT", "VERSION", "WHEN (UTC)")?;
    let events = builder.history();
    for event in events.get(events.len().saturating_sub(last)..).unwrap_or_default() {
        let pending = if event.version > builder.version() { " (pending)" } else { "" };
        writeln!(out, "{:>8} {:<17} {}{pending}", event.version, when(event), what(&event.change))?;
    }
    Ok(())
}

/// `2026-11-26 04:00`
fn when(event: &Event) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(event.hour) * 3600);
    let text = httpdate::HttpDate::from(time).to_string();
    // "Thu, 26 Nov 2026 04:00:00 GMT"
    text.get(5..22).unwrap_or(&text).to_owned()
}

fn what(change: &Change) -> String {
    let replicas = |replicas: &Replicas| hundredths(replicas.hundredths());
    match change {
        Change::Created => "created".to_owned(),
        Change::Imported => "imported".to_owned(),
        Change::Added { device, weight } => format!("device {device} added, weight {weight}"),
        Change::Removed { device } => format!("device {device} removed"),
        Change::Weighted { device, from, to } => format!("device {device}: weight {from} -> {to}"),
        Change::Replicated { from, to } => format!("replicas {} -> {}", replicas(from), replicas(to)),
        Change::Overloaded { from, to } => format!("overload {} -> {}", overload(*from), overload(*to)),
        Change::MinPartHours { from, to } => format!("min part hours {from} -> {to}"),
        Change::PretendedMinPartHours => "pretended that the min part hours have passed".to_owned(),
        Change::Rebalanced { moved, placed: 0 } => format!("rebalanced, {moved} replicas moved"),
        Change::Rebalanced { moved, placed } => format!("rebalanced, {moved} replicas moved, {placed} new"),
    }
}

pub(super) fn diff(before: &Path, after: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let (first, second) = (store::load_either(before)?, store::load_either(after)?);
    let found = quarry_ring::diff(&first, &second);
    let found = found
        .map_err(|e| Failure::new(format!("compare {} with {}", before.display(), after.display()), e))?;
    writeln!(out, "version       {} -> {}", first.version(), second.version())?;
    for device in &found.added {
        writeln!(out, "added         device {}, weight {}", device.id, device.weight)?;
    }
    for device in &found.removed {
        writeln!(out, "removed       device {}, weight {}", device.id, device.weight)?;
    }
    for (from, to) in &found.changed {
        let place = |device: &quarry_ring::Device| {
            format!(
                "{}.{}.{}:{}:{}",
                device.region,
                device.zone,
                device.node,
                device.weight,
                device.class.name()
            )
        };
        writeln!(out, "changed       device {}: {} -> {}", from.id, place(from), place(to))?;
    }
    writeln!(
        out,
        "partitions    {} moved, at most {} replica(s) of one",
        found.partitions_moved, found.most_of_one
    )?;
    writeln!(out, "replicas      {} moved, {} new, {} gone", found.moved, found.placed, found.dropped)?;
    if !found.traffic.is_empty() {
        writeln!(out)?;
        writeln!(out, "{:>6} {:>10} {:>10}", "ID", "IN", "OUT")?;
    }
    for (id, (came, went)) in &found.traffic {
        writeln!(out, "{id:>6} {came:>10} {went:>10}")?;
    }
    Ok(())
}
