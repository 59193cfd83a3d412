//! Which platforms run on which, as container runtimes see it.

/// Whether a node of this architecture runs images that are built for another one (OCI image-spec,
/// `architecture`): 64-bit machines run 32-bit images, as containerd's platform matching has it.
pub fn runs(node: &str, image: &str) -> bool {
    node == image || matches!((node, image), ("amd64", "386") | ("arm64", "arm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_bit_node_runs_32_bit_images() {
        for (node, image, expected) in [
            ("amd64", "amd64", true),
            ("amd64", "386", true),
            ("386", "amd64", false),
            ("arm64", "arm", true),
            ("arm", "arm64", false),
            ("amd64", "arm64", false),
            ("ppc64le", "ppc64", false),
        ] {
            assert_eq!(runs(node, image), expected, "{image} on {node}");
        }
    }
}
