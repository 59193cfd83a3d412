//! A warmer that lies: it holds a valid token of node A and says whatever the protocol lets it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use imagewarm_core::api::Reason;
use imagewarm_core::protocol::{FromWarmer, Hello, Outcome, Progress, PullRequest, from_warmer};
use prost::Message as _;
use tonic::Code;

use crate::world::{RawStream, World};

crate::tests![a_hostile_warmer_is_cut_off];

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

/// Says the words, reading all that comes, until the stream ends or all is said and `patience`
/// is over; returns how it ended.
async fn say(
    (mut stream, sender): RawStream,
    words: impl Iterator<Item = Vec<u8>>,
    patience: Duration,
) -> Result<Code> {
    let reading = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    };
    let saying = async {
        for word in words {
            if sender.send(word).await.is_err() {
                break;
            }
        }
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        code = reading => Ok(code),
        () = saying => bail!("the stream was not ended"),
    }
}

async fn a_hostile_warmer_is_cut_off(world: &World) -> Result<()> {
    let namespace = world.namespace("hostile").await?;
    let nodes = world.nodes();
    let missing = format!("{}/hostile/nothing:v1", world.plain_registry());
    let made = world.hand_made(&namespace, "of-node-b", &missing, &nodes[1], &[]).await?;
    let before = world.all_failed(&namespace, 1, Reason::NotFound).await?.remove(0);
    let uid = made.metadata.uid.clone().unwrap_or_default();
    world.stop_warmer(&nodes[0]).await?;
    let told = attack(world, &nodes[0], &uid).await;
    world.start_warmer(&nodes[0]).await?;
    told?;
    world.leader_has_caught_up().await?;
    let after = world.warms(&namespace).await?.remove(0);
    ensure!(after.reason() == before.reason(), "a lie was believed: {after:?}");
    ensure!(
        after.status.as_ref().and_then(|status| status.digest.as_ref()).is_none(),
        "a lie was believed: {after:?}"
    );
    Ok(())
}

async fn attack(world: &World, node: &str, foreign: &str) -> Result<()> {
    const CUT_OFF: (&str, &str) = ("imagewarm_dispatch_streams_ended_total", "Misbehaved");
    let patience = Duration::from_secs(60);
    let token = world.warmer_token(node, "imagewarm").await?;
    let counted = world.metric_sum(CUT_OFF.0, CUT_OFF.1).await?;
    let mut epoch = u64::MAX - 100;
    let mut open = async || {
        epoch += 1;
        world.raw_stream(&token, hello(epoch)).await
    };

    // What another version may say is not held against anyone: unknown fields, unknown messages,
    // reports of orders that are gone, and a second hello.
    let (mut stream, sender) = open().await?;
    let mut unknown = bytes(from_warmer::Message::Outcome(lie("gone")));
    unknown.extend([0xfa, 0xff, 0x07, 0x03, b'a', b'b', b'c']);
    for word in [unknown, vec![0xfa, 0xff, 0x07, 0x01, b'x'], hello(1)] {
        sender.send(word).await?;
    }
    // Never acknowledged and never answered: it just goes on being told.
    let next = tokio::time::timeout(patience, stream.message()).await??;
    next.context("the stream ended for words of another version")?;
    drop((stream, sender));

    let memory = world.controller_memory()?;
    type Words = Box<dyn Iterator<Item = Vec<u8>>>;
    let attacks: Vec<(&str, Words)> = vec![
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
    for (name, words) in attacks {
        let code = say(open().await?, words, patience).await.context(name)?;
        ensure!(code != Code::Ok, "{name}: ended well");
    }
    let grown = world.controller_memory()?.saturating_sub(memory);
    ensure!(grown < MEMORY_MIB, "the controller grew by {grown} MiB");
    world
        .eventually("every attack is counted", async || {
            let now = world.metric_sum(CUT_OFF.0, CUT_OFF.1).await?;
            Ok((now >= counted + number).then_some(()))
        })
        .await?;
    let logs = world.logs();
    for line in ["another node's orders", "what none of ours does"] {
        let told = |(_, log): &(String, String)| {
            log.lines().any(|text| text.contains(line) && text.contains(node))
        };
        ensure!(logs.iter().any(told), "no log line tells of {line:?}");
    }
    Ok(())
}

fn repeated(count: usize, word: Vec<u8>) -> Box<dyn Iterator<Item = Vec<u8>>> {
    Box::new(std::iter::repeat_n(word, count))
}
