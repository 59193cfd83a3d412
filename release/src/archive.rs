//! Archives whose bytes depend on what is in them alone: entries are sorted, root owns them, all have the
//! same time, and gzip notes neither time nor name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    pub(crate) executable: bool,
}

/// Files by their path. Folders come with the files in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(BTreeMap<String, File>);

impl Files {
    pub(crate) fn add(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.insert(path.into(), File { content: content.into(), executable: false });
    }

    pub(crate) fn add_program(&mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.insert(path.into(), File { content: content.into(), executable: true });
    }

    /// All of these below a folder.
    pub(crate) fn add_below(&mut self, folder: &str, files: Self) {
        self.0.extend(files.0.into_iter().map(|(path, file)| (format!("{folder}/{path}"), file)));
    }

    /// The files of a folder and of those in it whose names end in one of these, and not what a user has put beside them.
    pub(crate) fn of_folder(folder: &Path, ends: &[&str]) -> Result<Self> {
        let mut files = Self::default();
        files.read(folder, "", ends).with_context(|| format!("read {}", folder.display()))?;
        Ok(files)
    }

    /// Without those below a folder.
    pub(crate) fn without(mut self, folder: &str) -> Self {
        self.0
            .retain(|path, _| !path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
        self
    }

    fn read(&mut self, folder: &Path, below: &str, ends: &[&str]) -> Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a file name is no UTF-8")?;
            let path = format!("{below}{name}");
            if entry.file_type()?.is_dir() {
                self.read(&entry.path(), &format!("{path}/"), ends)?;
            } else if ends.iter().any(|end| name.ends_with(end)) {
                self.add(path, std::fs::read(entry.path())?);
            }
        }
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &File)> {
        self.0.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// A tar archive of these, in which everything has this time.
    pub(crate) fn tar(&self, epoch: u64) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for folder in self.folders() {
            let mut header = header(EntryType::Directory, 0o755, epoch);
            archive.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
        }
        for (path, file) in self.iter() {
            let mode = if file.executable { 0o755 } else { 0o644 };
            let mut header = header(EntryType::Regular, mode, epoch);
            header.set_size(u64::try_from(file.content.len())?);
            archive.append_data(&mut header, path, file.content.as_slice())?;
        }
        Ok(archive.into_inner()?)
    }

    /// Every folder, those above before those within.
    fn folders(&self) -> BTreeSet<&str> {
        let ends =
            self.0.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| &path[..at]));
        ends.collect()
    }
}

fn header(kind: EntryType, mode: u32, epoch: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// Compresses; the same content makes the same bytes.
pub(crate) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_are_sorted_and_have_nothing_of_the_machine() {
        let (mut files, mut other) = (Files::default(), Files::default());
        files.add("b/z", "1");
        files.add_program("b/a/tool", "22");
        other.add_program("b/a/tool", "22");
        other.add("b/z", "1");
        let made = files.tar(1_000).unwrap();
        assert_eq!(made, other.tar(1_000).unwrap(), "the order in which files were added");
        assert_ne!(made, files.tar(1_001).unwrap());
        let mut archive = tar::Archive::new(made.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
                assert_eq!(header.mtime().unwrap(), 1_000);
                let path = entry.path().unwrap().display().to_string();
                (path, header.mode().unwrap(), header.size().unwrap())
            })
            .collect();
        let expected =
            [("b/", 0o755, 0), ("b/a/", 0o755, 0), ("b/a/tool", 0o755, 2), ("b/z", 0o644, 1)];
        assert_eq!(entries, expected.map(|(path, mode, size)| (path.to_owned(), mode, size)));
    }

    #[test]
    fn gzip_notes_no_time_and_no_system() {
        let made = gzip(b"content").unwrap();
        assert_eq!(made[..4], [0x1f, 0x8b, 8, 0], "no name and no comment");
        assert_eq!(made[4..8], [0; 4], "no time");
        assert_eq!(made[9], 255, "no operating system");
    }
}
