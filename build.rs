//! Generates the dispatch protocol's client and server from `proto/`, without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/dispatch/v1/dispatch.proto"];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // A derived Debug would print passwords; src/protocol.rs writes these by hand.
        .skip_debug(["imagewarm.dispatch.v1.Credential"])
        .compile_fds(descriptors)?;
    Ok(())
}
