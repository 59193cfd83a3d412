//! Generates the messages of the dispatch protocol from `proto/`, without protoc. Its client and
//! server are generated where they are used, in the program.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../proto/dispatch");
    let dispatch = protox::compile(["../proto/dispatch/v1/dispatch.proto"], ["../proto"])?;
    prost_build::Config::new()
        // A derived Debug would print passwords; src/protocol.rs writes these by hand.
        .skip_debug(["imagewarm.dispatch.v1.Credential"])
        .compile_fds(dispatch)?;
    Ok(())
}
