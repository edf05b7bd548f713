//! What can still be said of a damaged record.

use super::Location;
use super::format::record::RecordView;
use super::handle::DiskHandle;
use crate::io::BLOCK;

impl DiskHandle {
    /// The head of the record at a place, when the head verifies although the data may not: it says what was lost.
    pub async fn salvage_head(&self, at: Location) -> Option<Vec<u8>> {
        self.check_place(at).ok()?;
        let start = self.shared.layout.segment_start(at.segment) + u64::from(at.offset);
        let lead = usize::try_from(start % BLOCK as u64).ok()?;
        let len = (lead + at.len as usize).next_multiple_of(BLOCK);
        let raw = self.read_raw(start - lead as u64, len).await.ok()?.ok()?;
        let record = raw.get(lead..)?;
        let view = RecordView::parse(record).ok()?;
        view.check_head(self.shared.device).ok()?;
        record.get(..view.head_len).map(<[u8]>::to_vec)
    }
}
