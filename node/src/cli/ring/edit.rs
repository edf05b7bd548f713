//! Commands that change a builder.

use std::io::Write;
use std::path::Path;

use quarry_ring::{Builder, Class, Rebalanced, Settings};

use super::output::{amount, percent};
use super::spec::{DeviceSpec, WeightSpec};
use super::store::{self, Editing, hour};
use super::{CreateArgs, Failure, RebalanceArgs, SetArgs};
use crate::swift_ring;

pub(super) fn create(args: &CreateArgs, out: &mut impl Write) -> Result<(), Failure> {
    let settings = Settings {
        part_power: args.part_power,
        replicas: args.replicas,
        min_part_hours: args.min_part_hours,
        overload: args.overload,
        policy: args.policy,
        class: args.class,
    };
    let builder = Builder::new(settings, hour()?);
    let builder = builder.map_err(|e| Failure::new(format!("make builder {}", args.file.display()), e))?;
    let editing = Editing::create(&args.file, builder)?;
    writeln!(out, "{}: {} partitions, no devices yet", args.file.display(), editing.builder.partitions())?;
    Ok(())
}

pub(super) fn add(file: &Path, devices: &[DeviceSpec], out: &mut impl Write) -> Result<(), Failure> {
    let (mut editing, hour) = (Editing::open(file)?, hour()?);
    let mut ids = Vec::new();
    for spec in devices {
        let id = editing.builder.add(&spec.device, &spec.label, hour);
        ids.push(id.map_err(|e| Failure::new(format!("add device to {}", file.display()), e))?);
    }
    editing.save()?;
    for (id, DeviceSpec { device, label }) in ids.iter().zip(devices) {
        let place = format!("{}.{}.{}", device.region, device.zone, device.node);
        writeln!(out, "device {id}: {place}, {}, weight {} {label}", device.class.name(), device.weight)?;
    }
    pending(&editing.builder, out)
}

pub(super) fn remove(file: &Path, ids: &[u32], out: &mut impl Write) -> Result<(), Failure> {
    let (mut editing, hour) = (Editing::open(file)?, hour()?);
    for &id in ids {
        let removed = editing.builder.remove(id, hour);
        removed.map_err(|e| Failure::new(format!("remove device from {}", file.display()), e))?;
    }
    editing.save()?;
    writeln!(out, "{} device(s) will go", ids.len())?;
    pending(&editing.builder, out)
}

pub(super) fn set_weight(file: &Path, weights: &[WeightSpec], out: &mut impl Write) -> Result<(), Failure> {
    let (mut editing, hour) = (Editing::open(file)?, hour()?);
    for spec in weights {
        let set = editing.builder.set_weight(spec.id, spec.weight, hour);
        set.map_err(|e| Failure::new(format!("set weight in {}", file.display()), e))?;
    }
    editing.save()?;
    pending(&editing.builder, out)
}

pub(super) fn set(args: &SetArgs, out: &mut impl Write) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("change {}", args.file.display()), error);
    let (mut editing, hour) = (Editing::open(&args.file)?, hour()?);
    let changes = &args.changes;
    if let Some(replicas) = changes.replicas {
        editing.builder.set_replicas(replicas, hour).map_err(failed)?;
    }
    if let Some(overload) = changes.overload {
        editing.builder.set_overload(overload, hour);
    }
    if let Some(hours) = changes.min_part_hours {
        editing.builder.set_min_part_hours(hours, hour).map_err(failed)?;
    }
    editing.save()?;
    pending(&editing.builder, out)
}

pub(super) fn pretend_min_part_hours(file: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let mut editing = Editing::open(file)?;
    editing.builder.pretend_min_part_hours(hour()?);
    editing.save()?;
    writeln!(out, "every partition may move with the next rebalance")?;
    Ok(())
}

pub(super) fn import(from: &Path, file: &Path, class: Class, out: &mut impl Write) -> Result<(), Failure> {
    let builder = swift_ring::import(&store::read(from)?, class, hour()?);
    let builder = builder.map_err(|e| Failure::new(format!("import {}", from.display()), e))?;
    let editing = Editing::create(file, builder)?;
    writeln!(
        out,
        "{}: {} devices, {} partitions; the next rebalance writes its ring",
        file.display(),
        editing.builder.members().len(),
        editing.builder.partitions()
    )?;
    Ok(())
}

pub(super) fn rebalance(args: &RebalanceArgs, out: &mut impl Write) -> Result<(), Failure> {
    let (mut editing, hour) = (Editing::open(&args.file)?, hour()?);
    let done = editing.builder.rebalance(hour);
    let done = done.map_err(|e| Failure::new(format!("rebalance {}", args.file.display()), e))?;
    if !args.dry_run && done.changed {
        editing.save()?;
    }
    report(&editing.builder, &done, args.stored, out)?;
    if args.dry_run {
        writeln!(out, "nothing was written")?;
    } else {
        // Also when nothing changed: a crash may have come between builder and ring.
        writeln!(out, "ring          {}", editing.save_ring()?.display())?;
    }
    Ok(())
}

fn report(
    builder: &Builder,
    done: &Rebalanced,
    stored: Option<u64>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let (before, after) = (&done.before, &done.after);
    writeln!(
        out,
        "version       {}{}",
        done.version,
        if done.changed { "" } else { ", as before: nothing to do" }
    )?;
    writeln!(out, "{:<14}{:>12}{:>12}", "", "before", "after")?;
    for (name, before, after) in [
        ("balance", before.balance, after.balance),
        ("off target", before.off_target, after.off_target),
        ("dispersion", before.crowded, after.crowded),
    ] {
        writeln!(out, "{name:<14}{:>12}{:>12}", percent(before), percent(after))?;
    }
    let partitions = builder.partitions() as u64;
    let replicas: u64 = builder.parts().rows.iter().map(|row| row.len() as u64).sum();
    let share = |part: u64, all: u64| percent((part * 1_000_000).checked_div(all).unwrap_or(0));
    let moved = done.partitions_moved;
    writeln!(out, "partitions    {moved} of {partitions} moved ({})", share(moved, partitions))?;
    writeln!(out, "replicas      {} of {replicas} moved ({})", done.moved, share(done.moved, replicas))?;
    for (count, what) in [(done.placed, "new"), (done.dropped, "no longer wanted")] {
        if count > 0 {
            writeln!(out, "              {count} {what}")?;
        }
    }
    match stored {
        Some(stored) => {
            let bytes = u128::from(stored) * u128::from(done.moved) / u128::from(partitions);
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            writeln!(
                out,
                "bytes         {} to move, of {} in all copies",
                amount(bytes),
                copies(stored, replicas, partitions)
            )?;
        }
        None => {
            writeln!(out, "bytes         unknown; --stored SIZE says how much one copy of all data takes")?;
        }
    }
    if done.held_back > 0 {
        let hours = builder.settings().min_part_hours;
        writeln!(
            out,
            "held back     {} partitions, which moved within the last {hours} hours",
            done.held_back
        )?;
    }
    Ok(())
}

fn copies(stored: u64, replicas: u64, partitions: u64) -> String {
    let bytes = u128::from(stored) * u128::from(replicas) / u128::from(partitions.max(1));
    amount(u64::try_from(bytes).unwrap_or(u64::MAX))
}

fn pending(builder: &Builder, out: &mut impl Write) -> Result<(), Failure> {
    let count = builder.pending().count();
    writeln!(out, "{count} change(s) wait for `quarry ring rebalance`")?;
    Ok(())
}
