//! The certificate of the HTTPS listener: made at start, kept nowhere.

use std::io;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// What the HTTPS listener offers by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    H2AndHttp1,
    H2,
    Http1,
    /// No ALPN at all; HTTP/1.1 is spoken.
    None,
}

pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) ca_pem: String,
}

impl Identity {
    /// An authority, and a certificate of it for these names.
    pub(crate) fn make(names: &[String], alpn: Alpn) -> io::Result<Identity> {
        let (config, ca_pem) = configure(names, alpn).map_err(io::Error::other)?;
        Ok(Identity {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            ca_pem,
        })
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn configure(names: &[String], alpn: Alpn) -> Result<(ServerConfig, String), Failure> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name
        .push(DnType::CommonName, "slow_server authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.distinguished_name
        .push(DnType::CommonName, "slow_server");
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())?;

    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    let offered: &[&[u8]] = match alpn {
        Alpn::H2AndHttp1 => &[b"h2", b"http/1.1"],
        Alpn::H2 => &[b"h2"],
        Alpn::Http1 => &[b"http/1.1"],
        Alpn::None => &[],
    };
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    Ok((config, ca_pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made() {
        let identity = Identity::make(&["localhost".to_owned(), "127.0.0.1".to_owned()], Alpn::H2)
            .expect("an identity");
        assert!(identity.ca_pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
