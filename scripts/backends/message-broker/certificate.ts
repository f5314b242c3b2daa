/*
 * Um certificado para o proxy servir HTTPS: o que houver na pasta, ou um autoassinado, feito agora.
 *
 *   npx tsx certificate.ts [pasta]      escreve cert.pem e key.pem, se faltam
 */

import {
  existsSync as file_exists,
  mkdirSync as make_dir,
  writeFileSync as write_file,
} from 'node:fs';
import path from 'node:path';
import { generate } from 'selfsigned';

/** Validade, em milissegundos. */
const validity_ms = 365 * 24 * 3600 * 1000;

/**
 * Dá o certificado de uma pasta, feito se falta.
 * @param folder a pasta
 * @returns os arquivos, na forma das variáveis do proxy
 */
export async function ensure_certificate(folder: string) {
  const files = { TLS_CERT: path.join(folder, 'cert.pem'), TLS_KEY: path.join(folder, 'key.pem') };
  if (file_exists(files.TLS_CERT) && file_exists(files.TLS_KEY)) return files;
  make_dir(folder, { recursive: true });
  const names = [
    { type: 2 as const, value: 'localhost' },
    { type: 7 as const, ip: '127.0.0.1' },
  ];
  const { cert, private: key } = await generate([{ name: 'commonName', value: 'localhost' }], {
    keyType: 'ec',
    algorithm: 'sha256',
    notAfterDate: new Date(Date.now() + validity_ms),
    extensions: [{ name: 'subjectAltName', altNames: names }],
  });
  write_file(files.TLS_KEY, key, { mode: 0o600 });
  write_file(files.TLS_CERT, cert);
  return files;
}

if (require.main === module) {
  void ensure_certificate(process.argv[2] ?? 'certificate').then(({ TLS_CERT, TLS_KEY }) => {
    console.log(`TLS_CERT=${TLS_CERT}\nTLS_KEY=${TLS_KEY}`);
  });
}
