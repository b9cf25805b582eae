//! The interception CA: issues a leaf certificate for the host of an intercepted tunnel, on first use.
//!
//! Not here: which tunnels are intercepted (`proxy::tunnel`), creating and reading a CA (`ca`).
//! Invariants: a leaf names its host only in the SAN, is valid for a few days and never longer than its CA; all leaves
//! use one key, which exists only in this process; at most `LEAVES_MAX` leaves are cached; issuing runs off the worker
//! threads.

mod ca;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use tokio::sync::{OnceCell, Semaphore};

use crate::model::origin::Host;
use crate::model::time::WallTime;
use crate::model::{Interception, Roots};
use crate::sync::lock;
use crate::tasks::Tasks;
pub use ca::{CaError, make_ca, read_ca, read_certificates};
use ca::{key_pair, moment, serial};

/// Maximum number of cached leaves; the least recently used is evicted.
const LEAVES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("more than none");
/// Maximum number of leaves issued concurrently.
const CONCURRENT_ISSUES_MAX: usize = 4;
/// Validity of a leaf, from `not_before` to `not_after`.
const LEAF_VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);
/// A leaf with less remaining validity is reissued.
const LEAF_REISSUE_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// `not_before` is earlier by this much, for callers whose clock is slow.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

pub struct Authority {
    interception: Interception,
    leaf_issuer: Arc<LeafIssuer>,
    /// LRU cache with one cell per host: the first request issues the leaf, concurrent ones wait for it.
    leaves: Mutex<LruCache<Host, Arc<OnceCell<Leaf>>>>,
    permits: Semaphore,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

#[derive(Clone)]
struct Leaf {
    config: Arc<ServerConfig>,
    reissue_at: WallTime,
}

/// Issues leaves; the parts that all leaves share.
struct LeafIssuer {
    issuer: Issuer<'static, KeyPair>,
    /// The CA's certificate and its issuers, without roots.
    chain: Roots,
    /// End of the CA's validity.
    expires_at: WallTime,
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("issuing a certificate failed: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("the certificate cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the interception CA's certificate has expired")]
    Expired,
    #[error("Keybearer is shutting down")]
    ShuttingDown,
}

impl Authority {
    /// # Errors
    /// Only for a CA that [`read_ca`] would reject, or without a source of randomness.
    pub fn new(interception: &Interception) -> Result<Authority, AuthorityError> {
        let certificate = interception.chain.first().ok_or(CaError::Certificate)?;
        let expires_at = super::expiry(certificate).ok_or(CaError::Certificate)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key_pair(&interception.key)?)?;
        let leaf_key = KeyPair::generate()?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialized_der()));
        let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        let leaf_issuer = LeafIssuer {
            issuer,
            chain: interception.chain.iter().filter(|certificate| !ca::is_root(certificate)).cloned().collect(),
            expires_at,
            leaf_key,
            signing_key,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        };
        let leaves = Mutex::new(LruCache::new(LEAVES_MAX));
        Ok(Authority {
            interception: interception.clone(),
            leaf_issuer: Arc::new(leaf_issuer),
            leaves,
            permits: Semaphore::new(CONCURRENT_ISSUES_MAX),
        })
    }

    /// True if this authority uses exactly this CA.
    pub fn is_of(&self, interception: &Interception) -> bool {
        self.interception == *interception
    }

    /// The TLS configuration that impersonates `host`.
    pub async fn server_config(
        &self,
        tasks: &Tasks,
        host: &Host,
        wall: WallTime,
    ) -> Result<Arc<ServerConfig>, AuthorityError> {
        let cell = self.cell(host, wall);
        let leaf = cell.get_or_try_init(|| self.issue(tasks, host, wall)).await?;
        Ok(leaf.config.clone())
    }

    /// The cache cell of a host; an empty one if there is none, or if its leaf is due to be reissued.
    fn cell(&self, host: &Host, wall: WallTime) -> Arc<OnceCell<Leaf>> {
        let mut leaves = lock(&self.leaves);
        let cached = leaves.get(host).filter(|cell| cell.get().is_none_or(|leaf| wall < leaf.reissue_at));
        if let Some(cell) = cached {
            return cell.clone();
        }
        let cell = Arc::new(OnceCell::new());
        leaves.put(host.clone(), cell.clone());
        cell
    }

    async fn issue(&self, tasks: &Tasks, host: &Host, wall: WallTime) -> Result<Leaf, AuthorityError> {
        let _permit = self.permits.acquire().await.map_err(|_| AuthorityError::ShuttingDown)?;
        let (leaf_issuer, host) = (self.leaf_issuer.clone(), host.clone());
        tasks.blocking(move || leaf_issuer.issue(&host, wall)).await.ok_or(AuthorityError::ShuttingDown)?
    }
}

impl LeafIssuer {
    fn issue(&self, host: &Host, wall: WallTime) -> Result<Leaf, AuthorityError> {
        let begin = wall - CLOCK_SKEW;
        let end = (begin + LEAF_VALIDITY).min(self.expires_at);
        if end <= wall {
            return Err(AuthorityError::Expired);
        }
        let chain = std::iter::once(self.sign_leaf(host, begin, end)?).chain(self.chain.iter().cloned()).collect();
        let certified = CertifiedKey::new(chain, self.signing_key.clone());
        // TLS 1.2 and 1.3, with what RFC 9325 recommends: rustls implements nothing else.
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A session cache per host would multiply the memory bound.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Reissuing cannot extend a leaf beyond the CA's own expiry.
        let reissue_at = if end == self.expires_at { end } else { end - LEAF_REISSUE_BEFORE };
        Ok(Leaf { config: Arc::new(config), reissue_at })
    }

    fn sign_leaf(&self, host: &Host, begin: WallTime, end: WallTime) -> Result<CertificateDer<'static>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![match host {
            Host::Ip(address) => SanType::IpAddress(*address),
            Host::Name(name) => SanType::DnsName(name.to_string().try_into()?),
        }];
        params.not_before = moment(begin);
        params.not_after = moment(end);
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&self.leaf_key, &self.issuer)?.der().clone())
    }
}

#[cfg(test)]
mod tests;
