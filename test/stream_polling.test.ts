/*
 * Os mesmos testes do fluxo, sem os avisos do Redis: o laço da especificação, ao pé da letra.
 */

process.env.WAKEUP = 'off';
require('./stream.test');
