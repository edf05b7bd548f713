//! `quarry disk check`: verifies every byte of the log of a device that no node has open. Changes nothing.
//!
//! Invariant: whatever the bytes are, the check goes on to the end of the device.

use super::format::batch::BatchHeader;
use super::format::record::{DeviceId, Kind};
use super::format::superblock::{COPIES, Layout, Superblock};
use super::open::{OpenError, check_device};
use super::upkeep::read_now;
use super::window::{At, Damaged, SegmentUse, Window};
use crate::io::{BLOCK, Disk};

/// Findings that are listed one by one; more are only counted.
const MAX_FINDINGS: usize = 1000;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// One of the two superblocks.
    #[error("superblock at byte {at} is damaged; the other one is used, the next start rewrites it")]
    Superblock {
        /// Where.
        at: u64,
    },
    /// The first block of a segment.
    #[error("segment {segment}: header is damaged")]
    SegmentHeader {
        /// Which.
        segment: u32,
    },
    /// A record.
    #[error("segment {segment} offset {offset}: {kind:?} record of {len} bytes fails its checksums")]
    Record {
        /// Where.
        segment: u32,
        /// Bytes from the start of the segment.
        offset: u32,
        /// Bytes.
        len: u32,
        /// What it was.
        kind: Kind,
    },
    /// No batch where one must be.
    #[error("segment {segment}: {bytes} bytes hold no readable batch")]
    Unreadable {
        /// Where.
        segment: u32,
        /// How many.
        bytes: u64,
    },
    /// The device would not read.
    #[error("segment {segment}: {reason}")]
    Device {
        /// Where.
        segment: u32,
        /// What the device said.
        reason: String,
    },
}

/// What a check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Segments in use.
    pub segments: u32,
    /// Sound batches.
    pub batches: u64,
    /// Sound records.
    pub records: u64,
    /// Bytes verified.
    pub bytes: u64,
    /// Everything that is not sound; `findings` lists the first thousand.
    pub bad: u64,
    /// In the order of the device.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    fn add(&mut self, finding: Finding) {
        self.bad += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}

/// Reads and verifies everything. `progress` is told (done, total) segments.
pub fn check(disk: &mut dyn Disk, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, OpenError> {
    let (superblock, _) = check_device(disk, None)?;
    let mut report = CheckReport::default();
    for at in COPIES {
        let copy = read_now(disk, at, BLOCK).ok().and_then(|block| Superblock::decode(&block).ok());
        if copy.is_none_or(|copy| copy.device != superblock.device) {
            report.add(Finding::Superblock { at });
        }
    }
    let Superblock { layout, device, .. } = superblock;
    for segment in 0..layout.segments {
        progress(u64::from(segment), u64::from(layout.segments));
        if let Err(e) = check_segment(disk, layout, device, segment, &mut report) {
            report.add(Finding::Device { segment, reason: e.to_string() });
        }
    }
    progress(u64::from(layout.segments), u64::from(layout.segments));
    Ok(report)
}

fn check_segment(
    disk: &mut dyn Disk,
    layout: Layout,
    device: DeviceId,
    segment: u32,
    report: &mut CheckReport,
) -> std::io::Result<()> {
    let mut window = Window::new(disk, layout, device, segment);
    let Some(SegmentUse { seq, header_damaged, .. }) = window.in_use()? else { return Ok(()) };
    report.segments += 1;
    if header_damaged {
        report.add(Finding::SegmentHeader { segment });
    }
    let end = window.footer(seq)?.map(|footer| u64::from(footer.end));
    let walked = window.walk(seq, end, |at, offset| match at {
        At::Whole(found) => {
            report.batches += 1;
            report.records += found.records.len() as u64;
            report.bytes += u64::from(found.header.total_len);
        }
        At::Flawed { found, damaged } => flawed(segment, offset, &found.header, &damaged, report),
        At::Nothing => {}
    })?;
    if walked.skipped > 0 {
        report.add(Finding::Unreadable { segment, bytes: walked.skipped });
    }
    Ok(())
}

fn flawed(segment: u32, batch: u64, header: &BatchHeader, damaged: &[Damaged], report: &mut CheckReport) {
    report.records += (header.records.len() - damaged.len()) as u64;
    for d in &header.records {
        let offset = u32::try_from(batch).unwrap_or(u32::MAX).saturating_add(d.offset);
        if damaged.iter().any(|record| record.offset == offset) {
            report.add(Finding::Record { segment, offset, len: d.len, kind: d.kind });
        }
    }
}
