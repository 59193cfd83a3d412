//! What an attacker would reach, and what it would cost: raw words on the dispatch port, raw bytes
//! on the admission port, and the controllers' memory.

use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::*;

/// Sends bytes as they are, whatever they mean.
#[derive(Clone, Copy, Default)]
pub struct Raw;

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
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = FromController;
    type Error = tonic::Status;

    fn decode(
        &mut self,
        buffer: &mut DecodeBuf<'_>,
    ) -> Result<Option<FromController>, tonic::Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        let message = prost::Message::decode(bytes.as_slice());
        message.map(Some).map_err(|error| tonic::Status::internal(error.to_string()))
    }
}

/// A stream that sends raw bytes; what is read, and where to say more.
pub type RawStream = (tonic::Streaming<FromController>, tokio::sync::mpsc::Sender<Vec<u8>>);

impl World {
    /// Where the leader takes streams.
    async fn leader_address(&self) -> Result<String> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client(), NAMESPACE);
        self.eventually("somebody leads", async || {
            let lease = leases.get("imagewarm-leader").await?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
            Ok(holder.split_once('@').map(|(_, address)| address.to_owned()))
        })
        .await
    }

    /// Opens a stream to the leader with this token, saying `first`.
    pub async fn raw_stream(&self, token: &str, first: Vec<u8>) -> Result<RawStream> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(self.cluster.dispatch_ca_file())?))
            .domain_name(format!("imagewarm-dispatch.{NAMESPACE}.svc"));
        let address = self.leader_address().await?;
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
        let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
        client.ready().await?;
        let (sender, said) = tokio::sync::mpsc::channel(64);
        sender.send(first).await?;
        let said = tokio_stream::wrappers::ReceiverStream::new(said);
        let mut request = tonic::Request::new(said);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let path = http::uri::PathAndQuery::from_static("/imagewarm.dispatch.v1.Dispatch/Session");
        let answer = client.streaming(request, path, Raw).await?;
        Ok((answer.into_inner(), sender))
    }

    /// The resident memory of the largest controller, in MiB.
    pub fn controller_memory(&self) -> Result<u64> {
        let mut largest = 0;
        for controller in locked(&self.controllers).values() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", controller.pid()))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
            largest = largest.max(kib.unwrap_or(0) / 1024);
        }
        Ok(largest)
    }

    /// Whether the processes that were started last all run still.
    pub fn controllers_run(&self) -> bool {
        locked(&self.controllers).values().all(|controller| controller.is_running())
    }

    /// Where one controller takes admission requests, behind no forwarder.
    pub fn admission_address(&self) -> Result<std::net::SocketAddr> {
        let controllers = locked(&self.controllers);
        let controller = controllers.values().next().context("no controller runs")?;
        let arguments = std::fs::read(format!("/proc/{}/cmdline", controller.pid()))?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        let mut words = arguments.split('\0').skip_while(|word| *word != "--webhook-listen");
        Ok(words.nth(1).context("the controller names no admission port")?.parse()?)
    }

    /// The CA of the controllers' certificates, PEM.
    pub fn ca(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.cluster.dispatch_ca_file())?)
    }
}
