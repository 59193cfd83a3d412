//! The warmer's settings.

use std::path::PathBuf;
use std::time::Duration;

use imagewarm_core::settings;

use super::stream::ServerAddress;

/// Settings of the warmer.
#[derive(clap::Args, Clone, Debug)]
pub struct WarmerArgs {
    /// The controller's dispatch server.
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_SERVER",
        default_value = "https://imagewarm-dispatch.imagewarm-system.svc:8444",
        value_name = "https://HOST:PORT"
    )]
    pub dispatch_server: ServerAddress,

    /// Name that the dispatch server's certificate must carry; by default the host of
    /// --dispatch-server.
    #[arg(long, env = "IMAGEWARM_DISPATCH_SERVER_NAME", value_name = "NAME")]
    pub dispatch_server_name: Option<String>,

    /// File with the certificate authority of the dispatch server (PEM). Read again for each
    /// connection; it may appear later.
    #[arg(
        long,
        env = "IMAGEWARM_DISPATCH_CA_FILE",
        default_value = "/etc/imagewarm/ca/ca.crt",
        value_name = "FILE"
    )]
    pub dispatch_ca_file: PathBuf,

    /// File with the ServiceAccount token of this Pod, for the audience `imagewarm`. Read again for
    /// each connection.
    #[arg(
        long,
        env = "IMAGEWARM_TOKEN_FILE",
        default_value = "/var/run/secrets/imagewarm/token",
        value_name = "FILE"
    )]
    pub token_file: PathBuf,

    /// Socket of the node's container runtime: Docker's, or one that speaks CRI (containerd,
    /// CRI-O). By default the one that is found at its usual place.
    #[arg(long, env = "IMAGEWARM_RUNTIME_ENDPOINT", value_name = "unix:///PATH")]
    pub runtime_endpoint: Option<String>,

    /// Most images that this node pulls at the same time.
    #[arg(long, env = "IMAGEWARM_PARALLEL_PULLS", default_value_t = 4, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel_pulls: u16,

    /// Most images that this node pulls at the same time from one registry: a slow one leaves places to
    /// the others.
    #[arg(long, env = "IMAGEWARM_MAX_PULLS_PER_REGISTRY", default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub max_pulls_per_registry: u16,

    /// Part of the runtime's image file system that must stay free: no pull begins that would go below.
    /// Keep it above what is left at the kubelet's `imageGCHighThresholdPercent` (85 unless set), so
    /// that warming never makes the kubelet remove images.
    #[arg(long, env = "IMAGEWARM_KEEP_FREE_DISK", default_value = "15%", value_name = "PERCENT", value_parser = settings::percentage)]
    pub keep_free_disk: u8,

    /// Room that the pull of an image is taken to need while no node has told its size.
    #[arg(long, env = "IMAGEWARM_ASSUMED_IMAGE_SIZE", default_value = "512Mi", value_name = "BYTES", value_parser = settings::bytes)]
    pub assumed_image_size: u64,

    /// A folder of the runtime's image file system, as the warmer sees it. By default the one that the
    /// runtime names, if it can be seen, or else the root of the warmer's container, which lies on
    /// the same file system.
    #[arg(long, env = "IMAGEWARM_IMAGE_FOLDER", value_name = "FOLDER")]
    pub image_folder: Option<PathBuf>,

    /// A pull by Docker that makes no progress for this long is given up and tried again later.
    #[arg(long, env = "IMAGEWARM_PULL_IDLE_TIMEOUT", default_value = "2m", value_name = "DURATION", value_parser = settings::at_least_a_second)]
    pub pull_idle_timeout: Duration,

    /// A pull over CRI, which tells no progress, is given up after this long and tried again later.
    /// It then starts from zero, so this must be longer than the largest image takes.
    #[arg(long, env = "IMAGEWARM_PULL_DEADLINE", default_value = "30m", value_name = "DURATION", value_parser = settings::at_least_a_second)]
    pub pull_deadline: Duration,

    /// How often the runtime is asked whether it still holds an image.
    #[arg(long, env = "IMAGEWARM_PRESENCE_INTERVAL", default_value = "1m", value_name = "DURATION", value_parser = settings::at_least_a_second)]
    pub presence_interval: Duration,
}
