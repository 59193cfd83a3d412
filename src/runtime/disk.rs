//! The free space of a file system. The limits are in `warmer/`.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use imagewarm_core::runtime::Space;

/// The space on the file system of `folder`.
pub(crate) fn space_of(folder: &Path) -> io::Result<Space> {
    let stat = statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space {
        free_bytes: bytes(stat.f_bavail),
        capacity_bytes: bytes(stat.f_blocks),
        free_inodes: stat.f_favail,
        inodes: stat.f_files,
    })
}

/// Whether `folder` is the root of an overlay, as a container's root file system is. Such a root
/// shares the space of the file system where the runtime stores its layers.
pub(crate) fn is_overlay(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    kind_of(&mounts, folder) == Some("overlay")
}

/// The type of the file system mounted at `folder`; the last mount there is the visible one.
fn kind_of<'a>(mounts: &'a str, folder: &Path) -> Option<&'a str> {
    let at = folder.to_str()?;
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, mounted_at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (mounted_at == at).then_some(kind)
    })
}

#[allow(unsafe_code)] // not in the standard library
fn statvfs(folder: &Path) -> io::Result<libc::statvfs> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and `stat` has room for what is written there.
    let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled `stat` in.
    Ok(unsafe { stat.assume_init() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_has_room_and_a_missing_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let space = space_of(folder.path()).unwrap();
        assert!(space.free_bytes <= space.capacity_bytes && space.capacity_bytes > 0, "{space:?}");
        let missing = space_of(&folder.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_topmost_mount_decides_the_kind() {
        let mounts = "rootfs / rootfs rw 0 0\noverlay / overlay rw,lowerdir=/l 0 0\n\
                      tmpfs /host/run tmpfs ro 0 0\n";
        assert_eq!(kind_of(mounts, Path::new("/")), Some("overlay"));
        assert_eq!(kind_of(mounts, Path::new("/host/run")), Some("tmpfs"));
        assert_eq!(kind_of(mounts, Path::new("/host")), None);
    }
}
