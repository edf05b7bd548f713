//! Backups whose pieces are in several places, and volumes that are not as long as the API says.

use std::sync::Arc;

use quarry_engine::object::{Condition, ObjectPath};
use quarry_volume::VolumeId;
use quarry_volume::store::Label;
use serde_json::{Value, json};

use super::{
    Caller, Office, Paper, PaperError, Rig, ask, caller, make, office, read, settle, status, work, write,
};

async fn back_up(office: &Arc<Office>, by: &Caller, said: Value) -> String {
    let (code, body) = ask(office, by, 0, "POST backups", json!({ "backup": said })).await;
    assert_eq!(code, 202, "{body}");
    settle(office).await;
    let id = body["backup"]["id"].as_str().unwrap().to_owned();
    assert_eq!(status(office, by, &format!("backups/{id}")).await, "available");
    id
}

/// Into a volume, or into a new one; which one.
async fn restore(office: &Arc<Office>, by: &Caller, backup: &str, into: Option<&str>) -> String {
    let said = json!({ "restore": { "volume_id": into } });
    let (code, body) = ask(office, by, 0, &format!("POST backups/{backup}/restore"), said).await;
    assert_eq!(code, 202, "{body}");
    settle(office).await;
    body["restore"]["volume_id"].as_str().unwrap().to_owned()
}

/// A full backup in one container and an incremental one in another.
async fn in_two_containers(office: &Arc<Office>, by: &Caller) -> [String; 2] {
    let id = make(office, by, json!({ "size": 1 })).await;
    settle(office).await;
    write(office, &id, 0, 1).await;
    write(office, &id, 512 << 20, 2).await;
    let full = back_up(office, by, json!({ "volume_id": id })).await;
    write(office, &id, 0, 3).await;
    let next = json!({ "volume_id": id, "incremental": true, "container": "other" });
    [full, back_up(office, by, next).await]
}

/// What did not change was looked for in the incremental backup's own container: it was `available`, and could not be restored.
#[tokio::test]
async fn a_backup_and_the_one_that_it_builds_on_may_be_in_two_containers() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let [full, next] = in_two_containers(&office, &me).await;
    for (backup, first) in [(&full, 1), (&next, 3)] {
        let into = restore(&office, &me, backup, None).await;
        assert_eq!(status(&office, &me, &format!("volumes/{into}")).await, "available");
        assert_eq!((read(&office, &into, 0).await, read(&office, &into, 512 << 20).await), (first, 2));
    }
    rig.stop().await;
}

/// Who imported both records in another project found the pieces of the first one no more: they are in the account that made them.
#[tokio::test]
async fn imported_backups_are_restored_from_where_their_records_say() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("q", true));
    let office = office(&rig);
    let [full, next] = in_two_containers(&office, &me).await;
    for backup in [&full, &next] {
        let (_, record) =
            ask(&office, &admin, 0, &format!("GET backups/{backup}/export_record"), Value::Null).await;
        // The papers are lost, and the objects are not.
        assert!(office.papers.remove("backups", backup).await.unwrap());
        let (code, body) = ask(&office, &admin, 0, "POST backups/import_record", record).await;
        assert_eq!(code, 201, "{body}");
    }
    let into = restore(&office, &admin, &next, None).await;
    assert_eq!((read(&office, &into, 0).await, read(&office, &into, 512 << 20).await), (3, 2));
    rig.stop().await;
}

/// The pieces before the one that was missing had been written over the volume when the restore failed.
#[tokio::test]
async fn a_volume_keeps_what_it_has_when_a_piece_of_its_backup_is_gone() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    let target = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &id, 0, 1).await;
    write(&office, &id, 512 << 20, 2).await;
    write(&office, &target, 0, 9).await;
    let backup = back_up(&office, &me, json!({ "volume_id": id })).await;
    let piece = ObjectPath {
        account: "AUTH_p".into(),
        container: "volumebackups".into(),
        object: format!("volume_{id}/backup_{backup}/00000128").into(),
    };
    rig.store().delete_object(&piece, &Condition::default()).await.unwrap();
    restore(&office, &me, &backup, Some(&target)).await;
    assert_eq!(status(&office, &me, &format!("volumes/{target}")).await, "error_restoring");
    assert_eq!(read(&office, &target, 0).await, 9);
    rig.stop().await;
}

/// A volume that was made in the volume layer with so many bytes, taken over.
async fn managed(office: &Arc<Office>, by: &Caller, name: &str, nth: u8, bytes: u64) -> String {
    let label = Label { name: name.into(), bytes, ..Label::default() };
    office.blocks.exports.volumes().create(VolumeId([nth; 16]), label).await.unwrap();
    let take = json!({ "volume": { "host": "quarry@quarry#quarry", "ref": { "source-name": name } } });
    let (code, body) = ask(office, by, 8, "POST manageable_volumes", take).await;
    assert_eq!(code, 202, "{body}");
    settle(office).await;
    body["volume"]["id"].as_str().unwrap().to_owned()
}

/// A volume of 1500 MiB is one of 2 GiB to the API: what a backup had past its end was left out, and the volume was `available`. And the
/// last piece of a volume whose length is odd left behind it what the other volume had there before.
#[tokio::test]
async fn a_restore_neither_cuts_off_nor_leaves_what_was_there() {
    let (rig, me) = (Rig::start(), caller("p", true));
    let office = office(&rig);
    let large = make(&office, &me, json!({ "size": 2 })).await;
    settle(&office).await;
    let short = managed(&office, &me, "short", 7, 1500 << 20).await;
    write(&office, &short, 4096, 9).await;
    write(&office, &large, 4096, 1).await;
    let fits = back_up(&office, &me, json!({ "volume_id": large })).await;
    write(&office, &large, 1800 << 20, 2).await;
    let past = back_up(&office, &me, json!({ "volume_id": large })).await;
    restore(&office, &me, &past, Some(&short)).await;
    assert_eq!(status(&office, &me, &format!("volumes/{short}")).await, "error_restoring");
    assert_eq!(read(&office, &short, 4096).await, 9, "nothing is written of what does not fit");
    let reset = json!({ "os-reset_status": { "status": "available" } });
    assert_eq!(ask(&office, &me, 0, &format!("POST volumes/{short}/action"), reset).await.0, 202);
    restore(&office, &me, &fits, Some(&short)).await;
    assert_eq!(status(&office, &me, &format!("volumes/{short}")).await, "available");
    assert_eq!(read(&office, &short, 4096).await, 1);
    let odd = managed(&office, &me, "odd", 8, (1 << 30) + 8192).await;
    write(&office, &odd, 1 << 30, 5).await;
    write(&office, &large, (1 << 30) + 8192, 6).await;
    let backup = back_up(&office, &me, json!({ "volume_id": odd })).await;
    restore(&office, &me, &backup, Some(&large)).await;
    let at = async |at: u64| read(&office, &large, at).await;
    assert_eq!((at(1 << 30).await, at((1 << 30) + 8192).await, at(1800 << 20).await), (5, 0, 0));
    assert!(office.blocks.exports.volumes().find(&work::device_name(&odd)).is_ok());
    rig.stop().await;
}

/// A volume was made of a backup that was not whole yet, and ended in `error`.
#[tokio::test]
async fn a_volume_is_made_of_a_backup_that_is_whole() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let (_, body) = ask(&office, &me, 0, "POST backups", json!({ "backup": { "volume_id": id } })).await;
    let said = || json!({ "volume": { "backup_id": body["backup"]["id"], "size": 1 } });
    assert_eq!(ask(&office, &me, 47, "POST volumes", said()).await.0, 400, "it is being made");
    settle(&office).await;
    assert_eq!(ask(&office, &me, 47, "POST volumes", said()).await.0, 202);
    rig.stop().await;
}

/// Between the choice of a parent and the paper that says so the parent was deleted: the backup that built on it was `available`.
#[tokio::test]
async fn a_backup_whose_parent_goes_meanwhile_is_not_whole() {
    let (rig, me) = (Rig::start(), caller("p", false));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    write(&office, &id, 0, 1).await;
    let full = back_up(&office, &me, json!({ "volume_id": id })).await;
    let said = json!({ "backup": { "volume_id": id, "incremental": true } });
    let (code, body) = ask(&office, &me, 0, "POST backups", said).await;
    assert_eq!(code, 202, "{body}");
    // Its task has not come to the index yet, which goes last.
    let goes = |backup: &mut Paper| -> Result<(), PaperError> {
        backup.insert("status".to_owned(), json!("deleting"));
        Ok(())
    };
    office.papers.change("backups", &full, goes).await.unwrap();
    settle(&office).await;
    let next = body["backup"]["id"].as_str().unwrap();
    assert_eq!(status(&office, &me, &format!("backups/{next}")).await, "error");
    assert_eq!(status(&office, &me, &format!("volumes/{id}")).await, "available");
    rig.stop().await;
}

/// An imported record says of what size its volume was: whoever restored one of a size that no number of bytes holds had a task that panicked.
#[tokio::test]
async fn no_volume_is_made_of_a_backup_that_claims_more_than_one_may_have() {
    let (rig, me, admin) = (Rig::start(), caller("p", false), caller("a", true));
    let office = office(&rig);
    let id = make(&office, &me, json!({ "size": 1 })).await;
    settle(&office).await;
    let backup = back_up(&office, &me, json!({ "volume_id": id })).await;
    let claims = |backup: &mut Paper| -> Result<(), PaperError> {
        backup.insert("size".to_owned(), json!(i64::MAX));
        Ok(())
    };
    office.papers.change("backups", &backup, claims).await.unwrap();
    let free = json!({ "quota_set": { "gigabytes": -1 } });
    assert_eq!(ask(&office, &admin, 0, "PUT os-quota-sets/p", free).await.0, 200);
    let what = format!("POST backups/{backup}/restore");
    assert_eq!(ask(&office, &me, 0, &what, json!({ "restore": {} })).await.0, 400);
    // What it claims is counted, and the next one is refused instead of overflowing.
    let next = json!({ "backup": { "volume_id": id } });
    assert_eq!(ask(&office, &me, 0, "POST backups", next).await.0, 413);
    rig.stop().await;
}
