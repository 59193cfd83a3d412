//! Which of the runtimes on a node is the kubelet's. Only that one's images serve its Pods.

use super::RuntimeVersion;

/// The Node's `status.nodeInfo.containerRuntimeVersion`, such as `containerd://2.2.3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletRuntime {
    name: String,
    version: String,
}

/// The outcome of a search among sockets, by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Only this one is the kubelet's runtime.
    One(usize),
    /// Several are, by name and version.
    Several,
    /// None is, of those that answer; another one does not answer.
    Silent(usize),
    /// None is.
    None,
}

impl KubeletRuntime {
    /// `None` for what has another form; a Node that has just registered may have none.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, version) = text.split_once("://")?;
        let is_complete = !name.is_empty() && !version.is_empty();
        is_complete.then(|| KubeletRuntime { name: name.into(), version: version.into() })
    }

    /// Whether a runtime that answers so is this one. A kubelet that names `2.2` means `2.2.3`, but not
    /// `2.20`.
    pub fn is(&self, found: &RuntimeVersion) -> bool {
        let [named, answered] =
            [&self.version, &found.version].map(|text| text.strip_prefix('v').unwrap_or(text));
        let rest = answered.strip_prefix(named);
        found.name == self.name
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+', '~', '-']))
    }

    /// Searches among the answers of several sockets; `None` is one that does not answer.
    pub fn find(&self, answers: &[Option<RuntimeVersion>]) -> Found {
        let mut fitting = answers
            .iter()
            .enumerate()
            .filter(|(_, answer)| answer.as_ref().is_some_and(|answer| self.is(answer)));
        match (fitting.next(), fitting.next()) {
            (Some((at, _)), None) => Found::One(at),
            (Some(_), Some(_)) => Found::Several,
            (None, _) => match answers.iter().position(Option::is_none) {
                Some(at) => Found::Silent(at),
                None => Found::None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer(name: &str, version: &str) -> Option<RuntimeVersion> {
        Some(RuntimeVersion {
            name: name.into(),
            version: version.into(),
            os: "linux".into(),
            architecture: "amd64".into(),
        })
    }

    #[test]
    fn name_and_version_must_fit() {
        let table = [
            ("containerd://2.1.4-k3s1", "containerd", "2.1.4-k3s1", true),
            ("containerd://v2.2.3", "containerd", "2.2.3", true),
            ("docker://20.10", "docker", "20.10.24+dfsg1", true),
            ("cri-o://1.34.0", "cri-o", "1.34.0", true),
            ("containerd://2.2", "containerd", "2.20.1", false),
            ("containerd://1.7.27", "containerd", "1.7.2", false),
            ("containerd://1.7.2", "containerd", "1.7.27", false),
            ("containerd://2.1.4", "docker", "28.2.2", false),
        ];
        for (kubelet, name, version, expected) in table {
            let kubelet = KubeletRuntime::parse(kubelet).unwrap();
            assert_eq!(kubelet.is(&answer(name, version).unwrap()), expected, "{kubelet:?}");
        }
        for text in ["", "containerd", "://2.2.3", "containerd://"] {
            assert_eq!(KubeletRuntime::parse(text), None, "{text}");
        }
    }

    #[test]
    fn of_several_sockets_one_is_the_kubelets() {
        let find = |kubelet: &str, answers: &[Option<RuntimeVersion>]| {
            KubeletRuntime::parse(kubelet).unwrap().find(answers)
        };
        let (k3s, docker) = (answer("containerd", "2.1.4-k3s1"), answer("docker", "28.2.2"));
        assert_eq!(find("containerd://2.1.4-k3s1", &[k3s, docker.clone()]), Found::One(0));
        assert_eq!(find("containerd://2.1.4", std::slice::from_ref(&docker)), Found::None);
        let two = [answer("containerd", "1.7.2"), answer("containerd", "1.7.27")];
        assert_eq!(find("containerd://1.7.27", &two), Found::One(1));
        let own = [answer("containerd", "1.7.27"), answer("docker", "29.0.1")];
        assert_eq!(find("docker://29.0.1", &own), Found::One(1));
        let same = [answer("containerd", "1.7.27"), answer("containerd", "1.7.27")];
        assert_eq!(find("containerd://1.7.27", &same), Found::Several);
        assert_eq!(find("containerd://2.2.3", &[docker.clone(), None]), Found::Silent(1));
        assert_eq!(find("docker://28.2.2", &[docker, None]), Found::One(0));
    }
}
