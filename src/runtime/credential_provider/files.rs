//! Reads the configuration of credential providers: one file, or the files of a folder in the order of
//! their names, as the kubelet does it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use imagewarm_core::image::credential_provider::{CredentialProvider, FieldError, parse_config};

/// The longest file that is read, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// Why the credential providers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialProviderError {
    /// One setting without the other.
    #[error(
        "{set} is set, but {unset} is not: set both, or neither to use no credential providers"
    )]
    Half {
        /// The flag that is set.
        set: &'static str,
        /// The flag that is not.
        unset: &'static str,
    },
    /// There is no folder of plugins.
    #[error(
        "{BIN_DIR}: {0} is not a directory: it must be the kubelet's directory of plugins, mounted in \
         the warmer"
    )]
    NoBinDir(PathBuf),
    /// The configuration cannot be read.
    #[error(
        "{CONFIG}: {path} cannot be read: it must be the kubelet's file, mounted in the warmer"
    )]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A folder without files.
    #[error("{CONFIG}: {0} has no file whose name ends with .json, .yaml or .yml")]
    Empty(PathBuf),
    /// A file that cannot be a configuration.
    #[error("{CONFIG}: {0} is longer than {LONGEST_FILE} bytes")]
    TooLong(PathBuf),
    /// The configuration is wrong.
    #[error("{CONFIG}: {path}: {fault}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field and its fault.
        fault: FieldError,
    },
}

const CONFIG: &str = "--image-credential-provider-config";
const BIN_DIR: &str = "--image-credential-provider-bin-dir";

/// The providers and the folder of their programs; `None` where neither is set.
pub(super) fn load<'p>(
    config: Option<&Path>,
    bin_dir: Option<&'p Path>,
) -> Result<Option<(Vec<CredentialProvider>, &'p Path)>, CredentialProviderError> {
    let (config, bin_dir) = match (config, bin_dir) {
        (None, None) => return Ok(None),
        (Some(config), Some(bin_dir)) => (config, bin_dir),
        (Some(_), None) => {
            return Err(CredentialProviderError::Half { set: CONFIG, unset: BIN_DIR });
        }
        (None, Some(_)) => {
            return Err(CredentialProviderError::Half { set: BIN_DIR, unset: CONFIG });
        }
    };
    if !bin_dir.is_dir() {
        return Err(CredentialProviderError::NoBinDir(bin_dir.to_owned()));
    }
    let (mut providers, mut seen) = (Vec::new(), BTreeSet::new());
    for path in files(config)? {
        let content = read(&path)?;
        match parse_config(&content, &mut seen) {
            Ok(found) => providers.extend(found),
            Err(fault) => return Err(CredentialProviderError::Invalid { path, fault }),
        }
    }
    Ok(Some((providers, bin_dir)))
}

fn files(config: &Path) -> Result<Vec<PathBuf>, CredentialProviderError> {
    let unreadable = |source| CredentialProviderError::Unreadable { path: config.into(), source };
    if !config.metadata().map_err(unreadable)?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in config.read_dir().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let end = name.to_str().and_then(|name| name.rsplit_once('.')).map(|(_, end)| end);
        if matches!(end, Some("json" | "yaml" | "yml"))
            && !entry.file_type().map_err(unreadable)?.is_dir()
        {
            files.push(entry.path());
        }
    }
    files.sort();
    if files.is_empty() {
        Err(CredentialProviderError::Empty(config.to_owned()))
    } else {
        Ok(files)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialProviderError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut content))
        .map_err(|source| CredentialProviderError::Unreadable { path: path.to_owned(), source })?;
    if content.len() as u64 > LONGEST_FILE {
        return Err(CredentialProviderError::TooLong(path.to_owned()));
    }
    Ok(content)
}
