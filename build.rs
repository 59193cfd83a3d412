//! Generates the dispatch protocol's client and server, and the clients of the container runtime
//! interface and of containerd's content and image services, from `proto/`, without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let dispatch = protox::compile(["proto/dispatch/v1/dispatch.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Its messages are data, and decisions depend on them.
        .extern_path(".imagewarm.dispatch.v1", "::imagewarm_core::protocol")
        .compile_fds(dispatch)?;
    let cri = protox::compile(["proto/cri/runtime/v1/api.proto"], ["proto/cri"])?;
    tonic_prost_build::configure()
        .build_server(false)
        // A derived Debug would print passwords; src/runtime/cri/api.rs writes these by hand.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(cri)?;
    let services = ["content/v1/content.proto", "images/v1/images.proto"];
    let services = services.map(|file| format!("proto/containerd/services/{file}"));
    let services = protox::compile(services, ["proto/containerd"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(services)?;
    Ok(())
}
