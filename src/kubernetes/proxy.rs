//! The proxy through which the API server is reached: the one that the kubeconfig names, else that of the
//! environment, with kubectl's rules. Own code: kube compares `NO_PROXY` with the proxy's own address, and
//! heeds no variable in a Pod.

use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::config::Kubeconfig;

/// Why a proxy cannot be used. Without its address, which may hold a password.
#[derive(Debug, thiserror::Error)]
#[error("the proxy of {from} cannot be used: it must be http://HOST:PORT or https://HOST:PORT")]
pub(crate) struct ProxyError {
    from: &'static str,
}

/// The proxy for `server`, if there is one.
pub(super) fn proxy(
    kubeconfig: Option<&Kubeconfig>,
    context: Option<&str>,
    server: &Uri,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, ProxyError> {
    let set = |upper: &str, lower: &str| {
        let value = variable(upper).filter(|value| !value.is_empty());
        value.or_else(|| variable(lower)).filter(|value| !value.trim().is_empty())
    };
    if let Some(proxy) = kubeconfig.and_then(|kubeconfig| declared(kubeconfig, context)) {
        return parsed(proxy, "the kubeconfig (proxy-url)").map(Some);
    }
    let Some(text) = set("HTTPS_PROXY", "https_proxy").filter(|_| !is_local(server)) else {
        return Ok(None);
    };
    let proxy = parsed(&text, "HTTPS_PROXY")?;
    let except = set("NO_PROXY", "no_proxy").unwrap_or_default();
    let matcher = Matcher::builder().https(text).no(except).build();
    Ok(matcher.intercept(server).map(|_| proxy))
}

/// `proxy-url` of the cluster of this context, or of the current one.
fn declared<'a>(kubeconfig: &'a Kubeconfig, context: Option<&str>) -> Option<&'a str> {
    let name = context.or(kubeconfig.current_context.as_deref())?;
    let context = kubeconfig.contexts.iter().find(|one| one.name == name)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|one| one.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.as_deref().filter(|proxy| !proxy.is_empty())
}

/// Without a scheme it is `http`, as everywhere.
fn parsed(text: &str, from: &'static str) -> Result<Uri, ProxyError> {
    let text = text.trim();
    let parsed = match text.contains("://") {
        true => text.parse::<Uri>(),
        false => format!("http://{text}").parse::<Uri>(),
    };
    let usable = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    };
    parsed.ok().filter(usable).ok_or(ProxyError { from })
}

/// A cluster on this machine is never behind a proxy of the environment.
fn is_local(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SERVER: &str = "https://api.shop.test:6443/";

    /// A server, the environment, and the proxy.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

    fn found(server: &str, variables: &[(&str, &str)], declared: &str) -> Option<String> {
        let kubeconfig = serde_saphyr::from_str(&format!(
            "current-context: here\n\
             contexts: [{{name: here, context: {{cluster: it, user: me}}}}, \
             {{name: other, context: {{cluster: absent, user: me}}}}]\n\
             clusters: [{{name: it, cluster: {{server: x, proxy-url: '{declared}'}}}}]\n"
        ));
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let server = server.parse().unwrap();
        let proxy = proxy(Some(&kubeconfig.unwrap()), None, &server, variable);
        proxy.map_or_else(|error| Some(error.to_string()), |uri| uri.map(|uri| uri.to_string()))
    }

    #[test]
    fn the_environment_decides_as_for_kubectl() {
        let proxy = ("HTTPS_PROXY", "http://proxy.test:3128");
        let through = Some("http://proxy.test:3128/");
        let except = |list| [proxy, ("NO_PROXY", list)];
        let cases: &[Case<'_>] = &[
            (SERVER, &[], None),
            (SERVER, &[proxy], through),
            (SERVER, &[("https_proxy", "proxy.test:3128")], through),
            (SERVER, &[("HTTPS_PROXY", ""), ("https_proxy", "proxy.test:3128")], through),
            (SERVER, &[("HTTP_PROXY", "http://proxy.test:3128")], None),
            (SERVER, &[proxy, ("no_proxy", ".shop.test")], None),
            (SERVER, &except("shop.test"), None),
            (SERVER, &except("other.test, .shop.test"), None),
            (SERVER, &except("*"), None),
            (SERVER, &except("op.test"), through),
            (SERVER, &except("proxy.test"), through),
            ("https://10.96.0.1:443/", &except("10.96.0.0/12,.svc"), None),
            ("https://10.112.0.1:443/", &except("10.96.0.0/12,.svc"), through),
            ("https://127.0.0.1:6443/", &[proxy], None),
            ("https://[::1]:6443/", &[proxy], None),
            ("https://localhost:6443/", &[proxy], None),
            ("http://api.shop.test:8080/", &[proxy], None),
        ];
        for (server, variables, expected) in cases {
            assert_eq!(
                found(server, variables, "").as_deref(),
                *expected,
                "{server} {variables:?}"
            );
        }
    }

    #[test]
    fn a_kubeconfigs_proxy_is_used_always() {
        let environment = [("HTTPS_PROXY", "http://other.test:1"), ("NO_PROXY", "*")];
        for server in [SERVER, "https://127.0.0.1:6443/"] {
            let proxy = found(server, &environment, "http://me:secret@127.0.0.1:3128");
            assert_eq!(proxy.as_deref(), Some("http://me:secret@127.0.0.1:3128/"));
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named_without_its_password() {
        for bad in
            ["socks5://me:secret@proxy.test:1080", "http://me:secret@", "me secret", "http://"]
        {
            let error = found(SERVER, &[("HTTPS_PROXY", bad)], "").unwrap();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("secret"), "{bad}: {error}");
            let error = found(SERVER, &[], bad).unwrap();
            assert!(error.contains("proxy-url") && !error.contains("secret"), "{bad}: {error}");
        }
    }
}
