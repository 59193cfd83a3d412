//! The controllers, Knative's types and the webhook configurations: started, stopped, broken.

use super::*;

const SPOILED: &str = "not a certificate";

impl World {
    pub(super) async fn start_controller(&self, name: &str) -> Result<()> {
        let started =
            self.cluster.start_controller(BINARY.as_ref(), name, &CONTROLLER_FLAGS).await?;
        locked(&self.controllers).insert(name.to_owned(), started);
        Ok(())
    }

    /// Starts both anew, with further flags.
    pub async fn restart_controllers_with(&self, flags: &[&str]) -> Result<()> {
        self.stop_controllers().await?;
        let flags = [&CONTROLLER_FLAGS[..], flags].concat();
        for name in ["controller-1", "controller-2"] {
            let started = self.cluster.start_controller(BINARY.as_ref(), name, &flags).await?;
            locked(&self.controllers).insert(name.to_owned(), started);
        }
        self.controllers_are_ready().await
    }

    /// Starts both with nothing left of the certificates that were stored.
    pub async fn begin_with_new_certificates(&self) -> Result<()> {
        self.stop_controllers().await?;
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        secrets.delete("imagewarm-certs", &Default::default()).await?;
        self.start_controllers().await
    }

    /// The CA that signs now, as the Secret has it.
    pub async fn signing_ca(&self) -> Result<String> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        let secret = secrets.get("imagewarm-certs").await?;
        let all = secret.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default();
        let all = String::from_utf8(all.0)?;
        let end = "-----END CERTIFICATE-----";
        Ok(all.split(end).next().unwrap_or_default().to_owned())
    }

    /// Has the API server call both webhooks without a pause until `done`; an error when one call
    /// failed. Returns how many there were.
    pub async fn admissions_while(
        &self,
        namespace: &str,
        done: impl Future<Output = Result<()>>,
    ) -> Result<usize> {
        // Refused where a webhook cannot be asked; nothing of it is stored.
        let order = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"generateName": "load-"},
            "spec": {"image": "app", "nodeName": "probe"},
        });
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let calls = (0..4).map(|_| async {
            loop {
                if let Some(refusal) = self.post_raw(namespace, &order).await? {
                    bail!("admission failed: {refusal}");
                }
                asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        tokio::select! {
            failed = futures::future::try_join_all(calls) => failed.map(|_: Vec<()>| ()),
            done = done => done,
        }?;
        Ok(asked.into_inner())
    }

    /// Starts both without waiting for them.
    pub async fn start_controllers_unready(&self) -> Result<()> {
        for name in ["controller-1", "controller-2"] {
            self.start_controller(name).await?;
        }
        Ok(())
    }

    /// What both say at /readyz, however ready they are.
    pub async fn readiness(&self) -> Result<Vec<String>> {
        let controllers: Vec<_> = locked(&self.controllers).values().cloned().collect();
        let mut said = vec![];
        for controller in controllers {
            let address = controller.health().context("no health port")?;
            // Not there yet says nothing.
            said.push(http_get(address, "/readyz").await.map(|(_, text)| text).unwrap_or_default());
        }
        Ok(said)
    }

    /// A client with the controllers' own account.
    pub async fn controller_client(&self) -> Result<Client> {
        let account = xtask::cluster::CONTROLLER_ACCOUNT;
        let path = self.cluster.kubeconfig_for(NAMESPACE, account).await?;
        let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(Client::try_from(config)?)
    }

    pub async fn controllers_are_ready(&self) -> Result<()> {
        let controllers: Vec<_> = locked(&self.controllers).values().cloned().collect();
        for controller in controllers {
            wait_ready(&controller).await?;
        }
        // The API server keeps connections to replicas that are gone; as with a real Service it
        // takes a moment until it finds the new ones.
        let probe = json!({
            "apiVersion": "caching.knative.dev/v1alpha1", "kind": "ImageWarm",
            "metadata": {"generateName": "probe-"},
            "spec": {"image": "app", "nodeName": "probe"},
        });
        self.eventually("admission answers", async || {
            Ok(self.post_raw("default", &probe).await?.is_none().then_some(()))
        })
        .await
    }

    /// Ends both controllers as a rollout would, and checks that they end well.
    pub async fn stop_controllers(&self) -> Result<()> {
        let controllers = std::mem::take(&mut *locked(&self.controllers));
        for (name, controller) in controllers {
            let status = controller.terminate(DEADLINE).await?;
            if !status.success() {
                bail!("{name} ended with {status}");
            }
        }
        Ok(())
    }

    pub async fn start_controllers(&self) -> Result<()> {
        self.start_controllers_unready().await?;
        self.controllers_are_ready().await
    }

    pub async fn restart_controllers(&self) -> Result<()> {
        self.stop_controllers().await?;
        self.start_controllers().await
    }

    /// SIGKILL for the replica that holds the Lease; returns its name.
    pub async fn kill_leader(&self) -> Result<String> {
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client(), NAMESPACE);
        let lease = leases.get("imagewarm-leader").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        // `NAME-RUN@ADDRESS`, with another RUN for each start of the process.
        let name = holder.split('@').next().unwrap_or_default();
        let name = name.rsplit_once('-').map_or(name, |(name, _)| name).to_owned();
        let leader = locked(&self.controllers).remove(&name);
        leader.with_context(|| format!("the leader {holder:?} is none of ours"))?.kill();
        Ok(name)
    }

    pub async fn restart_controller(&self, name: &str) -> Result<()> {
        self.start_controller(name).await?;
        self.controllers_are_ready().await
    }

    /// The sum of a metric over both controllers, of the samples whose labels contain a text.
    pub async fn metric_sum(&self, metric: &str, label: &str) -> Result<f64> {
        let controllers: Vec<_> = locked(&self.controllers).values().cloned().collect();
        let mut sum = 0.0;
        for controller in controllers {
            let address = controller.health().context("no health port")?;
            let (_, text) = http_get(address, "/metrics").await?;
            for line in text.lines().filter(|l| l.starts_with(metric) && l.contains(label)) {
                sum += line.rsplit(' ').next().and_then(|v| v.parse().ok()).unwrap_or(0.0);
            }
        }
        Ok(sum)
    }

    pub async fn remove_knative(&self) -> Result<()> {
        self.cluster.remove_knative().await
    }

    pub async fn install_knative(&self) -> Result<()> {
        self.cluster.install_knative().await
    }

    /// Returns once the leader has run without Knative: an order made by hand is served, and the
    /// grace period of the collection is over twice.
    pub async fn leader_has_caught_up_without_knative(&self) -> Result<()> {
        let namespace = self.namespace("probe").await?;
        let warms: Api<ImageWarm> = Api::namespaced(self.client(), &namespace);
        for round in 0..2 {
            let app = self.push("probe", &format!("{namespace}-{round}")).await?;
            self.hand_made(&namespace, "probe", &app.tag, &self.nodes()[0], &[]).await?;
            let made = Instant::now();
            self.all_ready(&namespace, 1).await?;
            self.eventually("the grace period is over", async || {
                Ok((made.elapsed() > Duration::from_secs(4)).then_some(()))
            })
            .await?;
            warms.delete("probe", &Default::default()).await?;
        }
        Ok(())
    }

    /// Overwrites the CA in both webhook configurations, as a careless apply would.
    pub async fn break_ca_bundle(&self) -> Result<()> {
        let body = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
        let patch = Patch::<()>::Json(serde_json::from_value(body)?);
        let params = PatchParams::default();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        mutating.patch("imagewarm", &params, &patch).await?;
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        validating.patch("imagewarm", &params, &patch).await?;
        Ok(())
    }

    /// Whether both configurations trust the CA that the warmers trust, in all their webhooks.
    pub async fn ca_bundle_is_right(&self) -> Result<bool> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), NAMESPACE);
        let map = maps.get("imagewarm-dispatch-ca").await?;
        let ca = map.data.and_then(|mut data| data.remove("ca.crt")).unwrap_or_default();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        let mutating = mutating.get("imagewarm").await?.webhooks.unwrap_or_default();
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        let validating = validating.get("imagewarm").await?.webhooks.unwrap_or_default();
        let mutating = mutating.into_iter().map(|webhook| webhook.client_config);
        let validating = validating.into_iter().map(|webhook| webhook.client_config);
        let mut bundles = mutating.chain(validating).map(|client| client.ca_bundle);
        Ok(bundles.all(|bundle| bundle.is_some_and(|bundle| bundle.0 == ca.as_bytes())))
    }

    /// As if nothing but the controllers had been installed yet.
    pub async fn delete_webhooks_and_certificates(&self) -> Result<()> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        mutating.delete("imagewarm", &Default::default()).await?;
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        validating.delete("imagewarm", &Default::default()).await?;
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        secrets.delete("imagewarm-certs", &Default::default()).await?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), NAMESPACE);
        maps.delete("imagewarm-dispatch-ca", &Default::default()).await?;
        Ok(())
    }

    /// Puts something else into the Secret of the certificates.
    pub async fn spoil_certificates(&self) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        let body = json!({"stringData": {"ca.crt": SPOILED, "tls.crt": SPOILED}});
        secrets.patch("imagewarm-certs", &PatchParams::default(), &Patch::Merge(body)).await?;
        Ok(())
    }

    pub async fn certificates_are_spoiled(&self) -> Result<bool> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        let data = secrets.get("imagewarm-certs").await?.data.unwrap_or_default();
        Ok(data.values().any(|value| value.0 == SPOILED.as_bytes()))
    }

    pub async fn apply_manifests(&self) -> Result<()> {
        self.cluster.apply_deploy().await
    }

    /// Whether both configurations go with our Namespace.
    pub async fn webhooks_are_owned(&self) -> Result<bool> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client());
        let owners = [
            mutating.get("imagewarm").await?.metadata.owner_references,
            validating.get("imagewarm").await?.metadata.owner_references,
        ];
        Ok(owners.iter().all(|owners| {
            owners.iter().flatten().any(|o| o.kind == "Namespace" && o.name == NAMESPACE)
        }))
    }
}
