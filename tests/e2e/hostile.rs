//! A warmer that lies: it holds a valid token of node A and sends whatever the protocol lets it.

use anyhow::{Context, Result, bail, ensure};
use imagewarm_core::api::Reason;
use imagewarm_core::protocol::{FromWarmer, Hello, Outcome, Progress, PullRequest, from_warmer};
use prost::Message as _;
use tonic::Code;

use crate::world::{DEADLINE, RawStream, World, eventually};

crate::tests![a_hostile_warmer_is_cut_off];

/// With the name of the node that is cut off: for reports about another node, and for messages that
/// no warmer sends.
const LOGGED: [&str; 2] = ["warmer cut off", "exceeds the message limits"];
/// Far more than the controllers need for what they hold in these tests, and far less than what
/// is thrown at them.
const MEMORY_MIB: u64 = 150;

fn bytes(message: from_warmer::Message) -> Vec<u8> {
    FromWarmer { message: Some(message) }.encode_to_vec()
}

fn hello(epoch: u64) -> Vec<u8> {
    let hello = Hello { protocol_version: 1, epoch, ..Hello::default() };
    bytes(from_warmer::Message::Hello(hello))
}

fn lie(uid: &str) -> Outcome {
    Outcome {
        uid: uid.into(),
        present: true,
        reason: Reason::Pulled.as_str().into(),
        digest: format!("sha256:{}", "0".repeat(64)),
        ..Outcome::default()
    }
}

/// Sends the messages, receiving all that comes, until the stream ends or all is sent and the
/// deadline is over; returns how it ended.
async fn send(
    (mut stream, sender): RawStream,
    messages: impl Iterator<Item = Vec<u8>>,
) -> Result<Code> {
    let receiving = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    };
    let sending = async {
        for message in messages {
            if sender.send(message).await.is_err() {
                break;
            }
        }
        tokio::time::sleep(DEADLINE).await;
    };
    tokio::select! {
        code = receiving => Ok(code),
        () = sending => bail!("the stream was not ended"),
    }
}

async fn a_hostile_warmer_is_cut_off(world: &World) -> Result<()> {
    let namespace = world.namespace("hostile").await?;
    let nodes = world.nodes.names();
    let missing = format!("{}/hostile/nothing:v1", world.registries.open().address);
    let made = namespace.create_image_warm("of-node-b", &missing, nodes[1], &[]).await?;
    let before = namespace.all_failed(1, Reason::NotFound).await?.remove(0);
    let uid = made.metadata.uid.clone().unwrap_or_default();
    world.warmers.stop(nodes[0]).await?;
    attack(world, nodes[0], &uid).await?;
    world.leader_has_caught_up().await?;
    let after = namespace.image_warms().await?.remove(0);
    ensure!(after.reason() == before.reason(), "a lie was believed: {after:?}");
    ensure!(
        after.status.as_ref().and_then(|status| status.digest.as_ref()).is_none(),
        "a lie was believed: {after:?}"
    );
    Ok(())
}

async fn attack(world: &World, node: &str, foreign: &str) -> Result<()> {
    const CUT_OFF: (&str, &str) = ("imagewarm_dispatch_streams_ended_total", "Misbehaved");
    // What another test of this kind has left behind does not count.
    let lines = |world: &World| LOGGED.map(|text| world.logs.lines_with(&[text, node]));
    let logged = lines(world);
    let token = world.streams.warmer_token(node, "imagewarm").await?;
    let counted = world.controllers.metric_sum(CUT_OFF.0, CUT_OFF.1).await?;
    let mut epoch = u64::MAX - 100;
    let mut open = async || {
        epoch += 1;
        world.streams.open_raw(&token, hello(epoch)).await
    };

    // What another version may send is not held against anyone: unknown fields, unknown messages,
    // reports of ImageWarms that are gone, and a second hello.
    let (mut stream, sender) = open().await?;
    let mut unknown = bytes(from_warmer::Message::Outcome(lie("gone")));
    unknown.extend([0xfa, 0xff, 0x07, 0x03, b'a', b'b', b'c']);
    for message in [unknown, vec![0xfa, 0xff, 0x07, 0x01, b'x'], hello(1)] {
        sender.send(message).await?;
    }
    // Never acknowledged and never answered: it just goes on being sent to.
    let next = tokio::time::timeout(DEADLINE, stream.message()).await??;
    next.context("the stream ended for messages of another version")?;
    drop((stream, sender));

    let memory = world.controllers.memory()?;
    type Messages = Box<dyn Iterator<Item = Vec<u8>>>;
    let attacks: Vec<(&str, Messages)> = vec![
        ("an outcome of B", repeated(1, bytes(from_warmer::Message::Outcome(lie(foreign))))),
        (
            "progress of B",
            repeated(
                1,
                bytes(from_warmer::Message::Progress(Progress {
                    uid: foreign.into(),
                    ..Progress::default()
                })),
            ),
        ),
        (
            "B's credentials",
            repeated(
                1,
                bytes(from_warmer::Message::PullRequest(PullRequest { uid: foreign.into() })),
            ),
        ),
        (
            "a flood about nothing",
            repeated(300_000, bytes(from_warmer::Message::Outcome(lie("none")))),
        ),
        ("a flood of unknown messages", repeated(300_000, vec![0xfa, 0xff, 0x07, 0x01, b'x'])),
        (
            "a huge message",
            repeated(
                1,
                bytes(from_warmer::Message::Outcome(Outcome {
                    message: "x".repeat(100_000_000),
                    ..lie("none")
                })),
            ),
        ),
        (
            "a long message",
            repeated(
                1,
                bytes(from_warmer::Message::Outcome(Outcome {
                    message: "x".repeat(200_000),
                    ..lie("none")
                })),
            ),
        ),
    ];
    let number = attacks.len() as f64;
    for (name, messages) in attacks {
        let code = send(open().await?, messages).await.context(name)?;
        ensure!(code != Code::Ok, "{name}: ended well");
    }
    let grown = world.controllers.memory()?.saturating_sub(memory);
    ensure!(grown < MEMORY_MIB, "the controller grew by {grown} MiB");
    eventually("every attack is counted", async || {
        let now = world.controllers.metric_sum(CUT_OFF.0, CUT_OFF.1).await?;
        Ok((now >= counted + number).then_some(()))
    })
    .await?;
    ensure!(lines(world)[0] > logged[0], "no log line names who reports for another node");
    ensure!(lines(world)[1] > logged[1], "no log line names who misuses the protocol");
    Ok(())
}

fn repeated(count: usize, message: Vec<u8>) -> Box<dyn Iterator<Item = Vec<u8>>> {
    Box::new(std::iter::repeat_n(message, count))
}
