//! Settings of the warmer.

use std::path::PathBuf;
use std::time::Duration;

use imagewarm_core::settings;

use super::stream::ServerAddress;

/// Settings of the warmer.
#[derive(clap::Args, Clone, Debug)]
pub struct WarmerArgs {
    /// URL of the controller's dispatch server: https://HOST:PORT
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_SERVER",
        default_value = "https://imagewarm-dispatch.imagewarm-system.svc:8444",
        value_name = "URL"
    )]
    pub dispatch_server: ServerAddress,

    /// Name that the dispatch server's certificate must contain. By default the host of
    /// --dispatch-server
    #[arg(long, env = "IMAGEWARM_DISPATCH_SERVER_NAME", value_name = "NAME")]
    pub dispatch_server_name: Option<String>,

    /// File with the certificate authority of the dispatch server (PEM). It is read for each
    /// connection, and may be created later
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_CA_FILE",
        default_value = "/etc/imagewarm/ca/ca.crt",
        value_name = "FILE"
    )]
    pub dispatch_ca_file: PathBuf,

    /// File with the ServiceAccount token of this Pod, for the audience `imagewarm`. It is read for
    /// each connection
    #[arg(
        long,
        env = "IMAGEWARM_TOKEN_FILE",
        default_value = "/var/run/secrets/imagewarm/token",
        value_name = "FILE"
    )]
    pub token_file: PathBuf,

    /// Socket of the node's container runtime, unix:///PATH: Docker's, or one that serves CRI
    /// (containerd, CRI-O). By default the socket found at a usual path
    #[arg(long, env = "IMAGEWARM_RUNTIME_ENDPOINT", value_name = "URL")]
    pub runtime_endpoint: Option<String>,

    /// Uid of the warmer's own Pod. Of two runtimes with the name and version that the kubelet reports, the one
    /// that runs this Pod is used
    #[arg(long, env = "IMAGEWARM_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,

    /// The kubelet's configuration of its credential provider plugins, a `CredentialProviderConfig`: a file, or
    /// a directory of files (*.json, *.yaml, *.yml). Images that they match are pulled with the node's own
    /// credentials, behind those of pull secrets. By default no plugin is run
    #[arg(long, env = "IMAGEWARM_IMAGE_CREDENTIAL_PROVIDER_CONFIG", value_name = "PATH")]
    pub image_credential_provider_config: Option<PathBuf>,

    /// Directory with the credential provider plugins, as mounted in the warmer. Set it with
    /// --image-credential-provider-config
    #[arg(long, env = "IMAGEWARM_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR", value_name = "DIR")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,

    /// Maximum number of images that this node pulls at the same time. Of three and more, one in
    /// eight (at least one) is kept for other namespaces than the one that has the others
    #[arg(long, env = "IMAGEWARM_PARALLEL_PULLS", default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel_pulls: u16,

    /// Maximum number of images that this node pulls at the same time from one registry, so that a
    /// slow registry does not block the others. Of three and more, one in eight (at least one) is kept
    /// for other namespaces than the one that has the others
    #[arg(long, env = "IMAGEWARM_MAX_PULLS_PER_REGISTRY", default_value_t = 4, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub max_pulls_per_registry: u16,

    /// Percentage of the runtime's image file system that must stay free, and half of it of the inodes: no
    /// pull begins that would go below it, and one that does is stopped. Keep it clear of what the kubelet
    /// starts to act on: by default 15% (`imageGCHighThresholdPercent` 85, eviction below 15% of the image
    /// file system), so that warming never makes the kubelet remove images or evict Pods
    #[arg(long, env = "IMAGEWARM_KEEP_FREE_DISK", default_value = "20%", value_name = "PERCENT", value_parser = settings::percentage)]
    pub keep_free_disk: u8,

    /// Space that a pull is assumed to need until a node has reported the size of the image
    #[arg(long, env = "IMAGEWARM_ASSUMED_IMAGE_SIZE", default_value = "512Mi", value_name = "BYTES", value_parser = settings::bytes)]
    pub assumed_image_size: u64,

    /// Directory on the runtime's image file system, as mounted in the warmer. By default the one
    /// that the runtime reports, if it is visible, or else the root of the warmer's container, which
    /// is on the same file system
    #[arg(long, env = "IMAGEWARM_IMAGE_FOLDER", value_name = "DIR")]
    pub image_folder: Option<PathBuf>,

    /// Share of the runtime's image file system that images may take up which the warmer pins while they are
    /// wanted on this node, so that the kubelet does not remove them. An image is taken to need three times its
    /// packed size. Only containerd 2 and later can pin; by default nothing is pinned
    #[arg(long, env = "IMAGEWARM_PIN_SHARE", default_value = "0%", value_name = "PERCENT", value_parser = settings::percentage)]
    pub pin_share: u8,

    /// The kubelet's setting of the same name (`imageGCHighThresholdPercent`). When so much of the image file
    /// system is used, pins go until the kubelet can free it, the oldest first
    #[arg(long, env = "IMAGEWARM_IMAGE_GC_HIGH_THRESHOLD", default_value = "85%", value_name = "PERCENT", value_parser = settings::percentage)]
    pub image_gc_high_threshold: u8,

    /// The kubelet's setting of the same name (`imageGCLowThresholdPercent`), down to which it frees the image
    /// file system. Above it no image is pinned in addition
    #[arg(long, env = "IMAGEWARM_IMAGE_GC_LOW_THRESHOLD", default_value = "80%", value_name = "PERCENT", value_parser = settings::percentage)]
    pub image_gc_low_threshold: u8,

    /// How long a pull by Docker may make no progress before it is cancelled and retried later
    #[arg(long, env = "IMAGEWARM_PULL_IDLE_TIMEOUT", default_value = "2m", value_name = "DURATION", value_parser = settings::at_least_a_second)]
    pub pull_idle_timeout: Duration,

    /// How long a pull may take, with all its credentials together, before it is cancelled and retried
    /// later. Over CRI the retry starts from zero, so this must be longer than the largest image takes
    #[arg(long, env = "IMAGEWARM_PULL_DEADLINE", default_value = "1h", value_name = "DURATION", value_parser = settings::at_least_a_second)]
    pub pull_deadline: Duration,

    /// Interval of the presence checks of each image that the runtime holds
    #[arg(long, env = "IMAGEWARM_PRESENCE_INTERVAL", default_value = "1m", value_name = "DURATION", value_parser = settings::at_least_a_second)]
    pub presence_interval: Duration,
}
