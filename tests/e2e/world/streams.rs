//! Tokens of warmers, and streams that the tests open with them.

use super::*;

/// The first answer, the rest of them, and what keeps the sending side open.
pub type OpenStream = (
    Option<FromController>,
    tonic::Streaming<FromController>,
    tokio::sync::mpsc::Sender<FromWarmer>,
);

impl World {
    pub async fn token_for(
        &self,
        namespace: &str,
        account: &str,
        node: &str,
        audience: &str,
    ) -> Result<String> {
        let pod = format!("probe-{node}");
        self.cluster.token_for_pod((namespace, account), (&pod, node), audience, 600).await
    }

    pub async fn warmer_token(&self, node: &str, audience: &str) -> Result<String> {
        self.token_for(NAMESPACE, WARMER_ACCOUNT, node, audience).await
    }

    pub async fn unbound_warmer_token(&self, audience: &str) -> Result<String> {
        self.cluster
            .token(&TokenFor {
                namespace: NAMESPACE,
                service_account: WARMER_ACCOUNT,
                pod: None,
                audience: Some(audience),
                seconds: 600,
            })
            .await
    }

    /// Gives a node's warmer this token, as its kubelet would; read when it opens a stream.
    pub fn give_token(&self, node: &str, token: &str) -> Result<()> {
        let file = self.cluster.token_file(self.node(node)?.as_ref());
        let next = file.with_extension("next");
        std::fs::write(&next, token)?;
        Ok(std::fs::rename(next, file)?)
    }

    /// Opens a stream to the leader with this token and says these messages; returns the first
    /// answer, the stream, and what keeps its sending side open.
    pub async fn open_stream(
        &self,
        token: Option<&str>,
        messages: Vec<FromWarmer>,
    ) -> Result<OpenStream, tonic::Status> {
        let internal = |error: &dyn std::fmt::Display| tonic::Status::internal(error.to_string());
        let ca = std::fs::read(self.cluster.dispatch_ca_file()).map_err(|e| internal(&e))?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .domain_name(format!("imagewarm-dispatch.{NAMESPACE}.svc"));
        let service = self.cluster.dispatch.address().to_string();
        let mut address = service.clone();
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            let endpoint = Endpoint::from_shared(format!("https://{address}"))
                .and_then(|endpoint| endpoint.tls_config(tls.clone()))
                .map_err(|e| internal(&e))?;
            let channel = endpoint.connect().await.map_err(|e| internal(&e))?;
            let mut client = DispatchClient::new(channel);
            let (sender, said) = tokio::sync::mpsc::channel(messages.len().max(1));
            for message in messages.clone() {
                let _ = sender.try_send(message);
            }
            let said = tokio_stream::wrappers::ReceiverStream::new(said);
            let mut request = tonic::Request::new(said);
            if let Some(token) = token {
                let value = HeaderValue::from_str(&format!("Bearer {token}"));
                let value = value.ok().and_then(|v| v.to_str().ok()?.parse().ok());
                request
                    .metadata_mut()
                    .insert("authorization", value.ok_or_else(|| internal(&"token"))?);
            }
            let answer = async {
                let mut stream = client.session(request).await?.into_inner();
                // A refusal may come as the call's answer or as the stream's first word.
                match stream.message().await {
                    Ok(first) => Ok((first, stream)),
                    Err(status) => Err(status),
                }
            };
            match answer.await {
                Ok((first, stream)) => return Ok((first, stream, sender)),
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    let leader = status.metadata().get(imagewarm_core::protocol::LEADER_METADATA);
                    match leader.and_then(|leader| leader.to_str().ok()) {
                        Some(leader) => address = leader.to_owned(),
                        // Nobody leads as yet, as far as this replica knows.
                        None => {
                            address.clone_from(&service);
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
                Err(status) => return Err(status),
            }
        }
        Err(tonic::Status::unavailable("no leader was found"))
    }
}
