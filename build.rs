//! Generates the dispatch protocol's client and server, and the container runtime interface's
//! client, from `proto/`, without protoc.

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
    Ok(())
}
