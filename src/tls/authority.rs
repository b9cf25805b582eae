//! The interception CA: a certificate for whatever host a tunnel leads to, made when it is first asked for.
//!
//! Not here: which tunnels are opened (`proxy::tunnel`), how a CA comes about (`ca`). Holds: a leaf names its host in SAN
//! alone, is good for a few days and never longer than its CA; its key is one for the process and lies nowhere else; what
//! was made is kept, but never more than `MADE_MAX` of it; making happens off the threads that serve requests.

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
pub use ca::{CaError, NewCa, make_ca, read_ca, read_certificates};
use ca::{key_pair, moment, serial};

/// Hosts whose certificates are kept; the least recently used leave.
const MADE_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("more than none");
/// Certificates that are being made at once.
const MAKING_MAX: usize = 4;
/// From `not_before` to `not_after`.
const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A leaf with less left is made anew.
const LEAF_LEFT_MIN: Duration = Duration::from_secs(24 * 3600);
/// Callers' clocks may be late by as much.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

pub struct Authority {
    interception: Interception,
    maker: Arc<Maker>,
    /// A cell for each host: who comes first makes, the others wait for it.
    made: Mutex<LruCache<Host, Arc<OnceCell<Made>>>>,
    places: Semaphore,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

#[derive(Clone)]
struct Made {
    config: Arc<ServerConfig>,
    renew_at: WallTime,
}

/// What every leaf is made with.
struct Maker {
    issuer: Issuer<'static, KeyPair>,
    /// The CA's certificate and those above it, roots left out.
    chain: Roots,
    /// The CA's end.
    ends: WallTime,
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("no certificate could be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the certificate cannot be served: {0}")]
    Serve(#[from] rustls::Error),
    #[error("the interception CA's certificate has ended")]
    Ended,
    #[error("the program is about to end")]
    Stopped,
}

impl Authority {
    /// # Errors
    /// Only for a CA that [`read_ca`] would refuse, or where there are no random bytes.
    pub fn new(interception: &Interception) -> Result<Authority, AuthorityError> {
        let certificate = interception.chain.first().ok_or(CaError::Certificate)?;
        let ends = super::expiry(certificate).ok_or(CaError::Certificate)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key_pair(&interception.key)?)?;
        let leaf_key = KeyPair::generate()?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialized_der()));
        let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        let maker = Maker {
            issuer,
            chain: interception.chain.iter().filter(|certificate| !ca::is_root(certificate)).cloned().collect(),
            ends,
            leaf_key,
            signing_key,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        };
        let made = Mutex::new(LruCache::new(MADE_MAX));
        Ok(Authority {
            interception: interception.clone(),
            maker: Arc::new(maker),
            made,
            places: Semaphore::new(MAKING_MAX),
        })
    }

    /// Is it made of this very CA?
    pub fn is_of(&self, interception: &Interception) -> bool {
        self.interception == *interception
    }

    /// How TLS is opened in the place of `host`.
    pub async fn server_config(
        &self,
        tasks: &Tasks,
        host: &Host,
        wall: WallTime,
    ) -> Result<Arc<ServerConfig>, AuthorityError> {
        let cell = self.cell(host, wall);
        let made = cell.get_or_try_init(|| self.make(tasks, host, wall)).await?;
        Ok(made.config.clone())
    }

    /// Where what is made for a host is kept; an empty one where there is nothing, or nothing that lasts.
    fn cell(&self, host: &Host, wall: WallTime) -> Arc<OnceCell<Made>> {
        let mut made = lock(&self.made);
        let kept = made.get(host).filter(|cell| cell.get().is_none_or(|made| wall < made.renew_at));
        if let Some(cell) = kept {
            return cell.clone();
        }
        let cell = Arc::new(OnceCell::new());
        made.put(host.clone(), cell.clone());
        cell
    }

    async fn make(&self, tasks: &Tasks, host: &Host, wall: WallTime) -> Result<Made, AuthorityError> {
        let _place = self.places.acquire().await.map_err(|_| AuthorityError::Stopped)?;
        let (maker, host) = (self.maker.clone(), host.clone());
        tasks.blocking(move || maker.make(&host, wall)).await.ok_or(AuthorityError::Stopped)?
    }
}

impl Maker {
    fn make(&self, host: &Host, wall: WallTime) -> Result<Made, AuthorityError> {
        let begin = wall - CLOCK_SKEW;
        let end = (begin + LEAF_LIFE).min(self.ends);
        if end <= wall {
            return Err(AuthorityError::Ended);
        }
        let chain = std::iter::once(self.leaf(host, begin, end)?).chain(self.chain.iter().cloned()).collect();
        let shown = CertifiedKey::new(chain, self.signing_key.clone());
        // TLS 1.2 and 1.3, and of both what RFC 9325 recommends: rustls has nothing else.
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions kept for each host would multiply the bound on hosts by theirs.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // The CA's own end cannot be moved by making another leaf.
        let renew_at = if end == self.ends { end } else { end - LEAF_LEFT_MIN };
        Ok(Made { config: Arc::new(config), renew_at })
    }

    fn leaf(&self, host: &Host, begin: WallTime, end: WallTime) -> Result<CertificateDer<'static>, rcgen::Error> {
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
