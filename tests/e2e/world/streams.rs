//! Tokens of warmers, and streams that the tests open with them: with messages of the protocol, or
//! with raw bytes, whatever they mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use imagewarm::protocol::dispatch_client::DispatchClient;
use imagewarm_core::protocol::{FromController, FromWarmer, LEADER_METADATA};
use prost::bytes::{Buf, BufMut};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use xtask::cluster::{NAMESPACE, TokenFor, WARMER_ACCOUNT};

use super::DEADLINE;
use super::controllers::Controllers;
use super::system::System;

const SECONDS: i64 = 600;

/// The first answer, the rest of them, and what keeps the sending side open.
pub type OpenStream = (Option<FromController>, Streaming<FromController>, mpsc::Sender<FromWarmer>);

/// A stream that sends raw bytes; what is received, and where to send more.
pub type RawStream = (Streaming<FromController>, mpsc::Sender<Vec<u8>>);

#[derive(Clone)]
pub struct Streams {
    system: Arc<System>,
    controllers: Controllers,
}

impl Streams {
    pub fn new(system: &Arc<System>, controllers: &Controllers) -> Streams {
        Streams { system: system.clone(), controllers: controllers.clone() }
    }

    /// A token of any account, bound to a Pod on a node.
    pub async fn token_for(
        &self,
        namespace: &str,
        account: &str,
        node: &str,
        audience: &str,
    ) -> Result<String> {
        let (pod, cluster) = (format!("probe-{node}"), &self.system.cluster);
        cluster.token_for_pod((namespace, account), (&pod, node), audience, SECONDS).await
    }

    pub async fn warmer_token(&self, node: &str, audience: &str) -> Result<String> {
        self.token_for(NAMESPACE, WARMER_ACCOUNT, node, audience).await
    }

    /// A token of the warmers' account that is bound to no node.
    pub async fn unbound_warmer_token(&self, audience: &str) -> Result<String> {
        let token = TokenFor {
            namespace: NAMESPACE,
            service_account: WARMER_ACCOUNT,
            pod: None,
            audience: Some(audience),
            seconds: SECONDS,
        };
        self.system.cluster.token(&token).await
    }

    async fn connect(&self, address: &str) -> Result<Channel> {
        Ok(self.endpoint(address)?.connect().await?)
    }

    /// The dispatch port at this address.
    fn endpoint(&self, address: &str) -> Result<Endpoint> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.controllers.published_ca()?))
            .domain_name(format!("imagewarm-dispatch.{NAMESPACE}.svc"));
        Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?)
    }

    /// Where connections to the leader are made.
    pub async fn leader(&self) -> Result<Endpoint> {
        self.endpoint(&self.controllers.leader_address().await?)
    }

    /// Opens a stream to the leader with this token and sends these messages.
    pub async fn open(
        &self,
        token: Option<&str>,
        messages: Vec<FromWarmer>,
    ) -> Result<OpenStream, Status> {
        let service = self.system.cluster.dispatch.address().to_string();
        let mut address = service.clone();
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            let channel = self.connect(&address).await;
            let channel = channel.map_err(|error| Status::internal(format!("{error:#}")))?;
            match open_at(channel, token, messages.clone()).await {
                Err(status) if status.code() == Code::FailedPrecondition => {
                    let leader = status.metadata().get(LEADER_METADATA);
                    match leader.and_then(|leader| leader.to_str().ok()) {
                        Some(leader) => leader.clone_into(&mut address),
                        // Nobody leads as yet, as far as this replica knows.
                        None => {
                            address.clone_from(&service);
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
                answer => return answer,
            }
        }
        Err(Status::unavailable("no leader was found"))
    }

    /// Opens a stream to the leader with this token, sending `first`.
    pub async fn open_raw(&self, token: &str, first: Vec<u8>) -> Result<RawStream> {
        let channel = self.connect(&self.controllers.leader_address().await?).await?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let (sender, sent) = mpsc::channel(64);
        sender.send(first).await?;
        let mut request = Request::new(ReceiverStream::new(sent));
        request.metadata_mut().insert("authorization", bearer(token)?);
        let path = http::uri::PathAndQuery::from_static("/imagewarm.dispatch.v1.Dispatch/Session");
        let answer = client.streaming(request, path, Raw).await?;
        Ok((answer.into_inner(), sender))
    }
}

/// Makes calls with a token that nobody issued, cancels each once it is sent, and counts them; until the
/// connection ends.
pub async fn reset_calls(channel: Channel, count: &AtomicUsize) -> Result<()> {
    let mut client = tonic::client::Grpc::new(channel);
    let path = http::uri::PathAndQuery::from_static("/imagewarm.dispatch.v1.Dispatch/Session");
    loop {
        client.ready().await?;
        let mut request = Request::new(tokio_stream::pending::<Vec<u8>>());
        request.metadata_mut().insert("authorization", bearer("nonsense")?);
        let call = client.streaming(request, path.clone(), Raw);
        // Long enough for its head to be sent.
        let _ = tokio::time::timeout(Duration::from_millis(1), call).await;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn open_at(
    channel: Channel,
    token: Option<&str>,
    messages: Vec<FromWarmer>,
) -> Result<OpenStream, Status> {
    let (sender, sent) = mpsc::channel(messages.len().max(1));
    for message in messages {
        let _ = sender.try_send(message);
    }
    let mut request = Request::new(ReceiverStream::new(sent));
    if let Some(token) = token {
        let bearer = bearer(token).map_err(|error| Status::internal(error.to_string()))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut stream = DispatchClient::new(channel).session(request).await?.into_inner();
    // A denial may come as the call's answer or as the stream's first message.
    let first = stream.message().await?;
    Ok((first, stream, sender))
}

fn bearer(token: &str) -> Result<MetadataValue<tonic::metadata::Ascii>> {
    Ok(format!("Bearer {token}").parse()?)
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = FromController;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = FromController;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<FromController>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        let message = prost::Message::decode(bytes.as_slice());
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
