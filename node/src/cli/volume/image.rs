//! Volumes from files and to files: `qemu-img` reads and writes them, over NBD as any client.
//!
//! Invariant: an import that fails leaves no volume, and an export overwrites no file.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{FileFormat, Over, tell};
use crate::block::Wanted;
use crate::cli::Failure;

/// Volumes have whole blocks.
const BLOCK: u64 = 4096;

/// What `qemu-img info` tells.
#[derive(Debug, Deserialize)]
struct Info {
    #[serde(rename = "virtual-size")]
    size: u64,
    #[serde(rename = "backing-filename")]
    backing: Option<String>,
    #[serde(rename = "format-specific", default)]
    specific: Specific,
}

#[derive(Debug, Default, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
struct SpecificData {
    #[serde(rename = "data-file")]
    data_file: Option<String>,
}

fn url(over: &Over, name: &str) -> String {
    let known = over.nbd_url.clone().or_else(|| std::env::var("QUARRY_NBD_URL").ok());
    let url = known.unwrap_or_else(|| "nbd://127.0.0.1:10809".to_owned());
    format!("{}/{name}", url.trim_end_matches('/'))
}

fn qemu_img(arguments: &[&str]) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(arguments).stdin(Stdio::null());
    command
}

fn failed(doing: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::new(doing, format!("qemu-img: {reason}"))
}

/// Size of a disk in a file.
fn size_of(file: &Path, format: FileFormat) -> Result<u64, Failure> {
    let doing = format!("look at {}", file.display());
    let output = qemu_img(&["info", "--output=json", "-f", format.name()])
        .arg(file)
        .output()
        .map_err(|e| failed(&doing, e))?;
    if !output.status.success() {
        return Err(failed(&doing, String::from_utf8_lossy(&output.stderr).trim()));
    }
    told_size(doing, &output.stdout)
}

/// Size of a disk in one file alone, as `qemu-img info` tells of it.
fn told_size(doing: String, told: &[u8]) -> Result<u64, Failure> {
    let info: Info = serde_json::from_slice(told).map_err(|e| failed(&doing, e))?;
    // Whoever made the image names that file, and all of it that this user may read would be in the volume.
    if let Some(other) = info.backing.or(info.specific.data.data_file) {
        return Err(Failure::new(
            doing,
            format!("it has bytes in another file, `{other}`: make one image of both first"),
        ));
    }
    Ok(info.size)
}

/// Copies, with a line of progress.
fn convert(doing: &str, mut command: Command) -> Result<(), Failure> {
    let status = command.status().map_err(|e| failed(doing, e))?;
    if status.success() { Ok(()) } else { Err(failed(doing, status)) }
}

pub(super) fn import(name: &str, file: &Path, format: FileFormat, over: &Over) -> Result<(), Failure> {
    let bytes = size_of(file, format)?.next_multiple_of(BLOCK).max(BLOCK);
    let description = format!("from {}", file.file_name().unwrap_or_default().display());
    tell(
        &over.admin,
        &Wanted::Create { name: name.to_owned(), bytes, description, encrypted: false, members: 1 },
    )?;
    let doing = format!("import {}", file.display());
    let mut command =
        qemu_img(&["convert", "-p", "-n", "--target-is-zero", "-f", format.name(), "-O", "raw"]);
    command.arg(file).arg(url(over, name));
    convert(&doing, command).inspect_err(|_| {
        // The first failure is the one to be told.
        let _kept = tell(&over.admin, &Wanted::Delete { name: name.to_owned() });
    })
}

pub(super) fn export(name: &str, file: &Path, format: FileFormat, over: &Over) -> Result<(), Failure> {
    let doing = format!("export {name}");
    if file.exists() {
        return Err(Failure::new(doing, format!("{} is there already", file.display())));
    }
    let mut command = qemu_img(&["convert", "-p", "-f", "raw", "-O", format.name()]);
    command.arg(url(over, name)).arg(file);
    convert(&doing, command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(told: &str) -> Result<u64, String> {
        told_size("look at it".to_owned(), told.as_bytes()).map_err(|failure| failure.to_string())
    }

    /// An image names its other files itself: one that came from a stranger had `/etc/shadow` in the volume.
    #[test]
    fn an_image_that_takes_bytes_from_another_file_is_refused() {
        let alone = r#"{ "virtual-size": 1048576, "filename": "a.qcow2", "format": "qcow2", "actual-size": 200704,
            "format-specific": { "type": "qcow2", "data": { "compat": "1.1", "lazy-refcounts": false } },
            "dirty-flag": false }"#;
        assert_eq!(size(alone), Ok(1_048_576));
        assert_eq!(size(r#"{ "virtual-size": 512, "format": "raw" }"#), Ok(512));
        let layered = r#"{ "virtual-size": 1048576, "format": "qcow2", "backing-filename-format": "raw",
            "full-backing-filename": "/etc/shadow", "backing-filename": "/etc/shadow" }"#;
        let outside = r#"{ "virtual-size": 1048576, "format": "qcow2",
            "format-specific": { "type": "qcow2", "data": { "data-file": "/etc/shadow", "data-file-raw": true } } }"#;
        for told in [layered, outside] {
            let refused = size(told).unwrap_err();
            assert!(refused.contains("`/etc/shadow`"), "{refused}");
        }
        assert!(size("not told").is_err());
    }
}
