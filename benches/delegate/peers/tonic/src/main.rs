// SPDX-License-Identifier: LGPL-2.1-or-later
//! An empty gRPC call over a Unix socket.
//!
//! - `empty-grpc-call server one|several PATH`
//! - `empty-grpc-call client one|several PATH`: see rounds.h for what it reads
//!   and prints
//!
//! `several` threads are what `#[tokio::main]` would give it, `one` is faster
//! when there is one call at a time.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

mod bench {
    tonic::include_proto!("bench.Empty");
}
use bench::empty_client::EmptyClient;
use bench::empty_server::{Empty, EmptyServer};

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

struct Service;

#[tonic::async_trait]
impl Empty for Service {
    async fn call(&self, _: Request<Nothing>) -> Result<Response<Nothing>, Status> {
        Ok(Response::new(Nothing {}))
    }
}

async fn serve(path: &str) -> Result<(), Box<dyn Error>> {
    let connections = UnixListenerStream::new(UnixListener::bind(path)?);
    Server::builder()
        .add_service(EmptyServer::new(Service))
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

async fn connect(path: &str) -> Result<EmptyClient<Channel>, Box<dyn Error>> {
    let path = path.to_owned();
    // The address is looked at by nobody: the connector has its own.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        }))
        .await?;
    Ok(EmptyClient::new(channel))
}

async fn measure(path: &str) -> Result<(), Box<dyn Error>> {
    let mut client = connect(path).await?;
    let mut output = io::stdout();
    writeln!(output, "ready")?;
    output.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let calls: usize = line
            .strip_prefix("calls ")
            .ok_or("not a request")?
            .parse()?;
        let mut ns = Vec::with_capacity(calls);
        for _ in 0..calls {
            let start = Instant::now();
            client.call(Nothing {}).await?;
            ns.push(start.elapsed().as_nanos());
        }
        ns.sort_unstable();
        writeln!(output, "{}", ns[calls / 2])?;
        output.flush()?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [end, threads, path] = &arguments[..] else {
        return Err("see the comment in main.rs".into());
    };
    let runtime = match threads.as_str() {
        "one" => Builder::new_current_thread(),
        "several" => Builder::new_multi_thread(),
        _ => return Err("one thread, or several?".into()),
    }
    .enable_all()
    .build()?;
    match end.as_str() {
        "server" => runtime.block_on(serve(path)),
        "client" => runtime.block_on(measure(path)),
        _ => Err("the server, or a client?".into()),
    }
}
