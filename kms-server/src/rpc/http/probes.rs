//! Plain HTTP for machines that watch: `/metrics`, `/healthz`, `/readyz`. Not for clients: no keys, no
//! names, nothing to change; on the loopback address unless the configuration insists.
//!
//! Everything is bounded: connections, the size and number of headers, the time for one request. No
//! request has a body that is read, and a connection carries one request.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    rpc::drain::{DrainWatch, Phase},
    site_health::{Looks, SiteHealth},
    telemetry::{
        catalogue::READY,
        metrics::{Page, Source},
    },
};

/// Connections open at once; more are closed unheard.
const CONNECTIONS_MAX: usize = 16;
/// All headers of a request, in bytes and in number.
const HEADER_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 32;
/// The time for a request's headers to arrive, and for a whole connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after the system refused to accept.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Whether this node is to be given work.
pub(crate) struct Readiness {
    /// `None`: nothing but the drain counts.
    pub(crate) looks: Option<Looks>,
    pub(crate) drain: DrainWatch,
}

impl Readiness {
    /// Whether it is ready, and what is wrong: a fixed sentence each, since who asks here has not said
    /// who he is.
    async fn look(&self) -> (bool, Vec<&'static str>) {
        let draining = self.drain.is(Phase::Draining);
        let mut reasons = Vec::new();
        if draining {
            reasons.push("the server is shutting down");
        }
        let Some(looks) = &self.looks else {
            return (!draining, reasons);
        };
        let health = SiteHealth::of(&looks.short().await);
        reasons.extend(health.keeps_from_work());
        (!draining && health.is_ready(), reasons)
    }
}

/// All that the listener answers from.
pub(crate) struct Probes {
    sources: Vec<Arc<dyn Source>>,
    readiness: Readiness,
    /// The last answer to `/readyz`: 0 nothing, 1 not ready, 2 ready.
    told: AtomicU8,
}

impl Probes {
    pub(crate) fn new(sources: Vec<Arc<dyn Source>>, readiness: Readiness) -> Arc<Self> {
        Arc::new(Self { sources, readiness, told: AtomicU8::new(0) })
    }

    /// Answers until it is dropped.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                // Reaps; the set itself is bounded by the places.
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection for metrics could not be accepted");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let probes = Arc::clone(&self);
            connections.spawn(async move {
                let _place = place;
                // Nobody is left to hear of what goes wrong here.
                let _ = timeout(CONNECTION_TIMEOUT, probes.talk(stream)).await;
            });
        }
    }

    async fn talk(self: Arc<Self>, stream: TcpStream) -> hyper::Result<()> {
        let service = service_fn(move |request: Request<Incoming>| {
            let probes = Arc::clone(&self);
            async move {
                Ok::<_, Infallible>(probes.answer(request.method(), request.uri().path()).await)
            }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if method != Method::GET && method != Method::HEAD {
            return response(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match path {
            "/metrics" => response(StatusCode::OK, self.page().render()),
            "/healthz" => response(StatusCode::OK, "alive\n".to_owned()),
            "/readyz" => {
                let (ready, reasons) = self.readiness.look().await;
                self.told.store(if ready { 2 } else { 1 }, Ordering::Relaxed);
                let sentences = reasons.iter().map(|reason| format!("{reason}\n"));
                let (status, word) = match ready {
                    true => (StatusCode::OK, "ready\n"),
                    false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
                };
                response(status, word.to_owned() + &sentences.collect::<String>())
            }
            _ => {
                let paths = "there are /metrics, /healthz and /readyz\n";
                response(StatusCode::NOT_FOUND, paths.to_owned())
            }
        }
    }

    fn page(&self) -> Page {
        let mut page = Page::of(self.sources.iter().map(AsRef::as_ref));
        match self.told.load(Ordering::Relaxed) {
            0 => {}
            told => page.sample(&READY, &[], told == 2),
        }
        page
    }
}

fn response(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::drain::Drain;

    #[tokio::test]
    async fn a_server_that_is_shutting_down_is_alive_and_not_ready() {
        let drain = Drain::new();
        let readiness = Readiness { looks: None, drain: drain.watch() };
        let probes = Probes::new(Vec::new(), readiness);
        let statuses = async |probes: &Probes| {
            let health = probes.answer(&Method::GET, "/healthz").await;
            let ready = probes.answer(&Method::GET, "/readyz").await;
            (health.status(), ready.status(), ready.into_body())
        };
        assert_eq!(statuses(&probes).await, (StatusCode::OK, StatusCode::OK, "ready\n".to_owned()));
        assert!(probes.page().render().contains("kms_ready 1\n"));
        drain.enter(Phase::Draining);
        let gone = "not ready\nthe server is shutting down\n".to_owned();
        assert_eq!(
            statuses(&probes).await,
            (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE, gone)
        );
        assert!(probes.page().render().contains("kms_ready 0\n"));
    }
}
