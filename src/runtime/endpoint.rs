//! The sockets among which the runtime is: that of `--runtime-endpoint` or, by default, the well-known
//! ones that exist. `selection` finds out which of them is the kubelet's.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::endpoint_error::EndpointError;
use super::{Runtime, cri, docker};
use imagewarm_core::image::quoted::quoted;

/// Directories to search for sockets; the shipped manifests mount the node's `/run` at the last.
const FOLDERS: [&str; 3] = ["/run", "/var/run", "/host/run"];
/// Well-known sockets and their protocols.
const WELL_KNOWN: [(&str, Kind); 6] = [
    ("containerd/containerd.sock", Kind::Cri),
    ("crio/crio.sock", Kind::Cri),
    ("docker.sock", Kind::Docker),
    // k3s and RKE2.
    ("k3s/containerd/containerd.sock", Kind::Cri),
    ("k0s/containerd.sock", Kind::Cri),
    // MicroK8s: its folder is mounted there by an overlay.
    ("containerd.sock", Kind::Cri),
];
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Docker,
    Cri,
}

/// The sockets that may be the runtime's, at least one: that of `endpoint`, such as
/// `unix:///var/run/docker.sock`, which must exist; without one, those at well-known paths.
pub fn sockets(endpoint: Option<&str>) -> Result<Vec<PathBuf>, EndpointError> {
    match endpoint {
        Some(endpoint) => Ok(vec![named(endpoint)?]),
        None => found(&FOLDERS.map(PathBuf::from)),
    }
}

/// The runtime behind a socket. One with a well-known name may start to respond later. Requires a tokio
/// runtime.
pub(super) fn behind(socket: &Path) -> Result<Arc<dyn Runtime>, EndpointError> {
    let kind = match well_known(socket) {
        Some(kind) => kind,
        None => probe(socket)
            .map_err(|source| EndpointError::Silent { path: socket.to_owned(), source })?,
    };
    Ok(match kind {
        Kind::Docker => Arc::new(docker::Docker::connect(socket)?),
        Kind::Cri => Arc::new(cri::Cri::connect(socket)),
    })
}

fn named(endpoint: &str) -> Result<PathBuf, EndpointError> {
    let path = endpoint
        .strip_prefix("unix://")
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .ok_or_else(|| EndpointError::Scheme(quoted(endpoint)))?;
    let metadata = std::fs::metadata(&path)
        .map_err(|source| EndpointError::Absent { path: path.clone(), source })?;
    if !metadata.file_type().is_socket() {
        return Err(EndpointError::NotASocket(path));
    }
    Ok(path)
}

/// The well-known sockets below these directories, without duplicates; at least one.
fn found(folders: &[PathBuf]) -> Result<Vec<PathBuf>, EndpointError> {
    let candidates =
        folders.iter().flat_map(|folder| WELL_KNOWN.map(|(name, _)| folder.join(name)));
    let mut existing: Vec<PathBuf> = Vec::new();
    // One folder may be mounted at several paths.
    let mut seen = HashSet::new();
    for path in candidates {
        let Ok(path) = path.canonicalize() else { continue };
        let Ok(found) = path.metadata() else { continue };
        if found.file_type().is_socket() && seen.insert((found.dev(), found.ino())) {
            existing.push(path);
        }
    }
    if existing.is_empty() {
        let example = folders.first().map(|folder| folder.join(WELL_KNOWN[0].0));
        return Err(EndpointError::NoneFound(example.unwrap_or_default()));
    }
    Ok(existing)
}

/// The protocol of a socket of this name.
fn well_known(path: &Path) -> Option<Kind> {
    let is = |name: &str| path.file_name() == Path::new(name).file_name();
    WELL_KNOWN.iter().find(|(name, _)| is(name)).map(|(_, kind)| *kind)
}

/// Detects the protocol. Docker responds to its ping over HTTP/1. A gRPC server responds in binary,
/// or closes; CRI-O also serves HTTP/1 on its socket, but responds to this path with 404.
fn probe(path: &Path) -> std::io::Result<Kind> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut begin = [0; 7];
    match stream.read_exact(&mut begin) {
        Ok(()) if begin == *b"HTTP/1." => {
            let mut status = [0; 5];
            stream.read_exact(&mut status)?;
            Ok(if status.ends_with(b" 404") { Kind::Cri } else { Kind::Docker })
        }
        Ok(()) => Ok(Kind::Cri),
        Err(error) => match error.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
                Ok(Kind::Cri)
            }
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_unusable_endpoint_is_one_clear_error() {
        let table = [
            ("tcp://127.0.0.1:2375", "must look like unix://"),
            ("/var/run/docker.sock", "must look like unix://"),
            ("unix://relative.sock", "must look like unix://"),
            ("unix:///nonexistent/docker.sock", "no runtime socket at /nonexistent/docker.sock"),
            ("unix:///dev/null", "is not a socket"),
        ];
        for (endpoint, text) in table {
            let error = sockets(Some(endpoint)).err().map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.contains(text), "{endpoint}: {error}");
        }
    }

    #[test]
    fn well_known_sockets_are_found_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().canonicalize().unwrap().join("run");
        let var_run = run.with_file_name("var-run");
        std::fs::create_dir_all(run.join("containerd")).unwrap();
        std::os::unix::fs::symlink(&run, &var_run).unwrap();
        let folders = [run.clone(), var_run];
        let none = found(&folders).unwrap_err().to_string();
        assert!(none.contains("--runtime-endpoint"), "{none}");
        std::fs::write(run.join("docker.sock"), "no socket").unwrap();
        let _containerd = UnixListener::bind(run.join("containerd/containerd.sock")).unwrap();
        assert_eq!(found(&folders).unwrap(), [run.join("containerd/containerd.sock")]);
        std::fs::remove_file(run.join("docker.sock")).unwrap();
        let _docker = UnixListener::bind(run.join("docker.sock")).unwrap();
        // The same folder, mounted once more.
        let host_run = run.with_file_name("host-run");
        std::fs::create_dir(&host_run).unwrap();
        std::fs::hard_link(run.join("docker.sock"), host_run.join("docker.sock")).unwrap();
        let several = found(&[folders.to_vec(), vec![host_run]].concat()).unwrap();
        assert_eq!(several, [run.join("containerd/containerd.sock"), run.join("docker.sock")]);
    }

    #[test]
    fn a_socket_of_another_name_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            (&b"HTTP/1.0 200 OK\r\n\r\nOK"[..], Kind::Docker),
            (&b"HTTP/1.0 403 Forbidden\r\n\r\n"[..], Kind::Docker),
            (&b"HTTP/1.0 404 Not Found\r\n\r\n404 page not found\n"[..], Kind::Cri),
            (&b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0"[..], Kind::Cri),
            (&b""[..], Kind::Cri),
        ];
        for (number, (response, kind)) in table.into_iter().enumerate() {
            let path = folder.path().join(format!("{number}.sock"));
            let listener = UnixListener::bind(&path).unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 64]);
                stream.write_all(response).unwrap();
            });
            assert_eq!(well_known(&path), None);
            assert_eq!(probe(&path).unwrap(), kind, "{response:?}");
            server.join().unwrap();
        }
        assert!(probe(&folder.path().join("none.sock")).is_err());
        assert_eq!(well_known(Path::new("/a/docker.sock")), Some(Kind::Docker));
        assert_eq!(well_known(Path::new("/a/crio.sock")), Some(Kind::Cri));
    }
}
